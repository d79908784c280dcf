"""What every dock has to be able to do."""

import pytest

from napari_attunet.widgets.docks import DockPart


def test_a_dock_that_cannot_close_down_is_none():
    with pytest.raises(TypeError, match="Endless has to say how it closes down"):
        type("Endless", (DockPart,), {})


def test_one_inherits_it():
    parent = type("Parent", (DockPart,), {"close_down": lambda self: None})
    assert type("Child", (parent,), {}).close_down is parent.close_down
