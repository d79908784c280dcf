"""A question in the dock itself, with two answers."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QHBoxLayout,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_attunet.widgets.feedback import wrapped_label

__all__ = ["Question"]


class Question(QWidget):
    """A question that waits for its answer without holding anything up.

    ::

        These labels look like classes ...
        [ Train classes ] [ No, they are objects ]
    """

    #: Whether the first answer was given.
    answered = Signal(bool)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.text = wrapped_label()
        self.yes, self.no = QPushButton(), QPushButton()
        buttons = QHBoxLayout()
        buttons.addWidget(self.yes)
        buttons.addWidget(self.no)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.text)
        layout.addLayout(buttons)
        self.yes.clicked.connect(self._on_yes)
        self.no.clicked.connect(self._on_no)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
        self.hide()

    def ask(self, text: str, yes: str, no: str) -> None:
        """Show a question and its two answers."""
        self.text.setText(text)
        self.yes.setText(yes)
        self.no.setText(no)
        self.show()

    def _on_yes(self) -> None:
        self.hide()
        self.answered.emit(True)

    def _on_no(self) -> None:
        self.hide()
        self.answered.emit(False)
