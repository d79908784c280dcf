"""What several panels let choose: an image of the viewer, a model of the library."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from napari.layers import Image
from qtpy.QtCore import QFileSystemWatcher, QObject, QSignalBlocker, Qt, QTimer, Signal
from qtpy.QtWidgets import QComboBox, QWidget

from napari_attunet.library import Entry, Library
from napari_attunet.widgets.layers import is_result
from napari_attunet.widgets.options import let_shrink

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["ImageBox", "LibraryWatch", "ModelBox"]

#: Milliseconds of quiet after which a folder is read: files come in several steps.
SETTLE = 150


class ImageBox(QComboBox):
    """The images of a viewer, without our own results.

    Parameters
    ----------
    viewer : Viewer
    parent : QWidget, optional
    """

    #: Another image is chosen, or none is left.
    chosen = Signal()

    def __init__(
        self, viewer: napari.viewer.Viewer, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._viewer_ref = weakref.ref(viewer)
        self._images: list[Image] = []
        self.setPlaceholderText("Open an image first")
        let_shrink(self)
        self.currentIndexChanged.connect(self._on_index_changed)
        self.refresh()

    @property
    def source(self) -> Image | None:
        """The chosen image."""
        index = self.currentIndex()
        return self._images[index] if 0 <= index < len(self._images) else None

    def select(self, layer: Image) -> None:
        """Choose an image."""
        if layer in self._images:
            self.setCurrentIndex(self._images.index(layer))

    def refresh(self) -> None:
        """List the images anew; a choice stays while there is the image."""
        viewer = self._viewer_ref()
        if viewer is None:
            return
        chosen = self.source
        self._images = [
            layer
            for layer in viewer.layers
            if isinstance(layer, Image) and not is_result(layer)
        ]
        with QSignalBlocker(self):
            self.clear()
            self.addItems([layer.name for layer in self._images])
            at = self._images.index(chosen) if chosen in self._images else 0
            self.setCurrentIndex(at if self._images else -1)
        self.setToolTip(self.currentText())
        if self.source is not chosen:
            self.chosen.emit()

    def let_go(self) -> None:
        """Hold no images any more: the dock is being closed."""
        self._images = []

    def _on_index_changed(self) -> None:
        self.setToolTip(self.currentText())  # long names are cut
        self.chosen.emit()


class ModelBox(QComboBox):
    """The models of a library, each name once for the version in use.

    Other versions stand below it as ``name@2``. What is chosen by its name stays so
    when another version comes into use. New versions appear by themselves.

    Parameters
    ----------
    library : Library
    parent : QWidget, optional
    """

    #: Another model is chosen, or none is left.
    chosen = Signal()

    def __init__(self, library: Library, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._library = library
        self._entries: tuple[Entry, ...] = ()
        self._by_user = False
        self._rgb = False
        self.setPlaceholderText("No models found")
        let_shrink(self)
        self.currentIndexChanged.connect(self._on_index_changed)
        self.activated.connect(self._on_activated)
        self._watch = LibraryWatch(library, self)
        self._watch.changed.connect(self.refresh)
        self.refresh()

    @property
    def entry(self) -> Entry | None:
        """The chosen model."""
        index = self.currentIndex()
        return self._entries[index] if 0 <= index < len(self._entries) else None

    def choose(self, name: str) -> bool:
        """Choose a model by name or key; return whether there is one."""
        row = self._row_of(name)
        if row < 0:
            return False
        self._by_user = True
        self.setCurrentIndex(row)
        return True

    def suggest(self, *, rgb: bool) -> None:
        """Take a colour model for colours, unless the user has chosen one."""
        self._rgb = rgb
        if not self._by_user:
            self.setCurrentIndex(self._suggestion(self.currentIndex()))

    def refresh(self) -> None:
        """Look for models again."""
        before = self.entry
        self._entries = tuple(
            sorted(
                self._library.entries(),
                key=lambda e: (e.spec.name, not e.current, -e.spec.version),
            )
        )
        with QSignalBlocker(self):
            self.clear()
            for row, entry in enumerate(self._entries):
                spec = entry.spec
                self.addItem(spec.name if entry.current else spec.key)
                tip = ": ".join(part for part in (spec.key, spec.description) if part)
                self.setItemData(row, tip, Qt.ItemDataRole.ToolTipRole)
            self.setCurrentIndex(self._row_after(before))
        self._show_tip()
        now = self.entry
        if (now and now.spec) != (before and before.spec):
            self.chosen.emit()

    def _row_after(self, before: Entry | None) -> int:
        """Return where the model is that was chosen before, or what to take now."""
        if before is not None:
            name = before.spec.name if before.current else before.spec.key
            row = self._row_of(name)
            if row >= 0:
                return row
            self._by_user = False  # it is gone
        return self._suggestion(0 if self._entries else -1)

    def _row_of(self, name: str) -> int:
        for row, entry in enumerate(self._entries):
            if name == entry.spec.key or (name == entry.spec.name and entry.current):
                return row
        return -1

    def _suggestion(self, otherwise: int) -> int:
        for row, entry in enumerate(self._entries):
            network = entry.spec.network
            suits = (network.in_channels == 3) == self._rgb and network.ndim == 2
            if suits and entry.current:
                return row
        return otherwise

    def _on_index_changed(self) -> None:
        self._show_tip()
        self.chosen.emit()

    def _on_activated(self) -> None:
        self._by_user = True

    def _show_tip(self) -> None:
        entry = self.entry
        self.setToolTip("" if entry is None else entry.spec.description)


class LibraryWatch(QObject):
    """Tells when something changes on the shelf, whoever changed it.

    Parameters
    ----------
    library : Library
        Its folder need not exist yet.
    parent : QObject, optional
    """

    changed = Signal()

    def __init__(self, library: Library, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._folder = library.folder.absolute()
        self._watcher = QFileSystemWatcher(self)
        self._settled = QTimer(self)
        self._settled.setSingleShot(True)
        self._settled.setInterval(SETTLE)
        self._watcher.directoryChanged.connect(self._on_directory_changed)
        self._settled.timeout.connect(self._on_settled)
        self._aim()

    def _aim(self) -> bool:
        """Watch the folder or what will hold it; return whether there was news."""
        present = [p for p in (self._folder, *self._folder.parents) if p.is_dir()]
        watched = [Path(name) for name in self._watcher.directories()]
        if present[:1] != watched:
            if watched:
                self._watcher.removePaths([str(path) for path in watched])
            if present:
                self._watcher.addPath(str(present[0]))
        return self._folder in (*present[:1], *watched)

    def _on_directory_changed(self) -> None:
        self._settled.start()

    def _on_settled(self) -> None:
        if self._aim():
            self.changed.emit()
