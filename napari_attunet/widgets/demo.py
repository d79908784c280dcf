"""The demonstration: a stained tissue, its nuclei, and what every gate lets through."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_attunet.errors import DeviceError, ModelError

if TYPE_CHECKING:
    import napari

__all__ = ["run"]

#: What a user gets who presses the button on this image.
MODEL = "nuclei-histology"

WINDOW = (1800, 960)

#: Seen on grey and on every colour of the attention maps.
OUTLINES = "cyan"

#: Milliseconds that the window gets to paint everything before its picture is taken.
SETTLE = 1500


def run(screenshot: Path | None = None) -> None:
    """Open a viewer with a tissue, segment its nuclei and show the gates.

    Parameters
    ----------
    screenshot : Path, optional
        Write a picture of the window here and end, instead of waiting for the user to
        close it. Needs no screen where Xvfb is installed.

    Raises
    ------
    DeviceError
        If there is neither a screen nor, for a screenshot, Xvfb.
    ModelError
        If no fitting model is there, or it finds nothing to show.
    """
    with _screen(virtual=screenshot is not None):
        import napari

        viewer = napari.Viewer(title="napari-attunet")
        with contextlib.ExitStack() as stack:
            stack.callback(viewer.close)
            _run(viewer, screenshot)
            if screenshot is None:
                stack.pop_all()  # from here on the user closes it
                napari.run()


def _run(viewer: napari.Viewer, screenshot: Path | None) -> None:
    from qtpy.QtCore import QEventLoop, QTimer

    from napari_attunet.widgets.segment import DOCK, PLUGIN

    viewer.window.resize(*WINDOW)
    viewer.open_sample(PLUGIN, "immunohistochemistry")
    tissue = viewer.layers["tissue"]
    _, widget = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)
    widget.select(tissue)
    if not widget.choose_model(MODEL):
        raise ModelError(
            f"The demonstration needs the model {MODEL}. Install napari-attunet again: "
            "it comes with it."
        )

    outcome: list[bool] = []
    loop = QEventLoop()
    widget.finished.connect(outcome.append)
    widget.finished.connect(loop.quit)
    widget.finished.connect(lambda ok: _arrange(viewer, tissue) if ok else None)
    widget.start()
    if screenshot is None:
        return
    loop.exec()
    if outcome != [True]:
        raise ModelError(widget.message.text())
    QTimer.singleShot(SETTLE, loop.quit)
    loop.exec()
    viewer.screenshot(str(screenshot), canvas_only=False, flash=False)


def _arrange(viewer: napari.Viewer, tissue: Any) -> None:
    """Show tissue, haematoxylin and every gate beside each other, nuclei outlined.

    In a grid of napari's own, so that with the grid off all lie on each other again.
    """
    from napari.layers import Labels

    from napari_attunet.widgets.layers import mark_of

    marked = [layer for layer in viewer.layers if mark_of(layer)]
    labels = next(layer for layer in marked if isinstance(layer, Labels))
    gates = [layer for layer in marked if layer is not labels][::-1]  # fine to coarse
    stain = viewer.layers["haematoxylin"]
    stain.visible = True
    labels.contour, labels.opacity = 2, 1
    pictures = [(tissue, labels)]
    for picture in (stain, *gates):
        picture.visible, picture.opacity = True, 1
        picture.blending = "translucent"
        shown = picture.name.removeprefix(f"{tissue.name} · ")
        outlines = Labels(labels.data, name=f"nuclei on {shown}", opacity=0.8)
        outlines.contour = 2
        outlines.colormap = {None: OUTLINES, 0: "transparent"}
        viewer.layers.append(outlines)
        pictures.append((picture, outlines))
    for pair in reversed(pictures):
        for layer in pair:
            viewer.layers.move(viewer.layers.index(layer), len(viewer.layers))
    grid = viewer.canvas.grid if hasattr(viewer, "canvas") else viewer.grid
    grid.stride = -2  # from the topmost layers on
    grid.enabled = True
    viewer.layers.selection = {labels}
    viewer.reset_view()


@contextlib.contextmanager
def _screen(*, virtual: bool) -> Iterator[None]:
    """Have a screen, if need be and allowed a virtual one; Qt aborts without."""
    wanted = {"DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"}
    if not sys.platform.startswith("linux") or wanted & os.environ.keys():
        yield
        return
    server = shutil.which("Xvfb")
    if not virtual or server is None:
        raise DeviceError(
            "This machine has no screen. Give --screenshot FILE to get a picture"
            + ("." if server else ", and install Xvfb for it (apt install xvfb).")
        )
    read, write = os.pipe()
    screen = ["-screen", "0", "1920x1080x24", "-nolisten", "tcp"]
    process = subprocess.Popen(  # noqa: S603 - found on the path, no shell
        [server, "-displayfd", str(write), *screen],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    try:
        with os.fdopen(read) as pipe:
            number = pipe.readline().strip()
        if not number:
            raise DeviceError(f"{server} did not start: try it by hand to see why.")
        os.environ["DISPLAY"] = f":{number}"
        yield
    finally:
        os.environ.pop("DISPLAY", None)
        process.terminate()
        process.wait()
