"""Sample images for napari's menu File > Open Sample."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QEventLoop, Qt
from qtpy.QtWidgets import QApplication, QProgressDialog

from napari_attunet import samples
from napari_attunet.errors import Cancelled, DataError
from napari_attunet.progress import Progress, Steps, drain
from napari_attunet.widgets.jobs import Job

__all__ = ["human_mitosis", "immunohistochemistry", "nuclei_2d", "nuclei_3d"]

LayerData = list[tuple[Any, dict[str, Any], str]]

#: A voxel of the volume is so much longer along z.
ANISOTROPY = 2.0


def nuclei_2d() -> LayerData:
    """Return synthetic fluorescent nuclei and their hidden truth."""
    return _nuclei((512, 512), "nuclei 2D")


def nuclei_3d() -> LayerData:
    """Return a volume of synthetic fluorescent nuclei and its hidden truth."""
    return _nuclei((24, 192, 192), "nuclei 3D", scale=(ANISOTROPY, 1, 1))


def immunohistochemistry() -> LayerData:
    """Return a stained tissue, and beneath it its haematoxylin alone."""
    rgb, stain = samples.immunohistochemistry()
    return [
        (stain, {"name": "haematoxylin", "visible": False}, "image"),
        (rgb, {"name": "tissue", "rgb": True}, "image"),
    ]


def human_mitosis() -> LayerData:
    """Return human cells in division; scikit-image downloads them the first time.

    Raises
    ------
    DataError
        If they cannot be downloaded.
    Cancelled
        If the user did not want to wait.
    """
    if QApplication.instance() is None:
        pixels = drain(_fetch_mitosis())
    else:
        pixels = _wait_for(_fetch_mitosis, "Downloading human mitosis …")
    return [(pixels, {"name": "human mitosis"}, "image")]


def _nuclei(shape: tuple[int, ...], name: str, **look: Any) -> LayerData:
    image, truth = samples.synthetic_nuclei(shape)
    return [
        (image, {"name": name, **look}, "image"),
        (truth, {"name": f"{name} · truth", "visible": False, **look}, "labels"),
    ]


def _fetch_mitosis() -> Steps[Any]:
    yield Progress(0, 0)
    from skimage import data

    try:
        return data.human_mitosis()
    except (OSError, ValueError) as error:  # no connection, or a damaged file
        raise DataError(
            "The human mitosis sample could not be downloaded. Check the connection to "
            "the internet (gitlab.com) and try again; the other samples need none. "
            f"The download said: {error}"
        ) from error


def _wait_for(make_steps: Any, text: str) -> Any:
    """Return the result of steps in a thread, with a dialog if it takes a while.

    napari wants a sample at once; a loop of events keeps its window alive meanwhile.
    """
    dialog = QProgressDialog(text, "Cancel", 0, 0, QApplication.activeWindow())
    dialog.setWindowModality(Qt.WindowModality.WindowModal)
    dialog.setMinimumDuration(300)
    job, loop = Job(make_steps, dialog), QEventLoop()
    outcome: dict[str, Any] = {}
    job.succeeded.connect(lambda result: outcome.update(result=result))
    job.failed.connect(lambda error: outcome.update(error=error))
    job.ended.connect(loop.quit)
    dialog.canceled.connect(loop.quit)
    job.start()
    loop.exec()
    dialog.deleteLater()
    dialog.close()
    if "error" in outcome:
        raise outcome["error"]
    if "result" not in outcome:
        raise Cancelled("The download was cancelled.")
    return outcome["result"]
