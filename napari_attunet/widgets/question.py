"""Text that wraps, and a question in the dock itself, with two answers."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

__all__ = ["Question", "wrapped_label"]


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


def wrapped_label(text: str = "") -> QLabel:
    """Return text that takes as many lines as it needs."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
    return label
