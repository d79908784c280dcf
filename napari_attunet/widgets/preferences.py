"""What the user has said in napari's preferences."""

from __future__ import annotations

__all__ = ["preferred_threads"]


def preferred_threads() -> int | None:
    """Return how many threads to use where no dock says so; None where nothing does.

    Then it is the environment that says it, or the number of cores.
    """
    try:
        from napari.settings import get_plugin_settings

        performance = get_plugin_settings("napari-attunet").performance
    except (
        ImportError,
        KeyError,
    ):  # before napari 0.9, or it is switched off
        return None
    return performance.threads or None
