"""What a user most likely means, and how it is said; no window needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from napari.layers import Image, Labels
from napari.layers._source import layer_source

from napari_attunet.corrections import (
    BACKGROUND_BRUSH,
    Correction,
    Count,
    TrainingSet,
    background_brush,
    brush_in,
)
from napari_attunet.corrections.split import hash_image
from napari_attunet.errors import DataError
from napari_attunet.widgets.gathering import Aim
from napari_attunet.widgets.layers import Mark, Snapshot, set_mark
from napari_attunet.widgets.suggestions import (
    count_line,
    explain,
    fits,
    next_label,
    sample_for,
    suggest_extent,
    suggest_labels,
)


def labels(*shape: int, **arguments) -> Labels:
    return Labels(np.zeros(shape, np.int32), **arguments)


def predict(layer: Labels, image: Image) -> Labels:
    mark = Mark(
        source=image.unique_id,
        model="m@1",
        role="objects",
        layer=layer.unique_id,
        fingerprint="",
        record={},
        prediction=Snapshot.of(layer.data),
    )
    set_mark(layer, mark)
    return layer


@pytest.mark.parametrize(
    ("shape", "rgb", "fitting", "others"),
    [
        ((30, 40), False, [(30, 40)], [(40, 30), (1, 30, 40), (4, 30, 40)]),
        ((30, 40, 3), True, [(30, 40)], [(30, 40, 3)]),
        (
            (4, 30, 40),
            False,
            [(4, 30, 40), (1, 30, 40), (30, 40)],
            [(4, 30), (4, 40), (3, 30, 40)],
        ),
    ],
)
def test_which_labels_fit(shape, rgb, fitting, others):
    image = Image(np.zeros(shape, np.uint8), rgb=rgb)
    assert all(fits(image, labels(*s)) for s in fitting)
    assert not any(fits(image, labels(*s)) for s in others)


def test_own_results_are_suggested_first_then_by_name_then_the_newest():
    image, other = (Image(np.zeros((6, 8)), name=n) for n in ("cells", "tissue"))
    alien, plain = labels(5, 5), labels(6, 8, name="a")
    named, newest = labels(6, 8, name="cells mask"), labels(6, 8, name="b")
    own = predict(labels(6, 8, name="c"), image)
    theirs = predict(labels(6, 8, name="d"), other)
    assert suggest_labels(image, [own, alien, named, plain, theirs]) is own
    assert suggest_labels(image, [named, alien, plain, newest]) is named
    assert suggest_labels(image, [plain, newest, alien]) is newest
    assert suggest_labels(image, [alien]) is None


def test_files_hold_finished_masks_and_strokes_are_strokes():
    with layer_source(path="mask.tif"):
        read = labels(6, 8)
    assert suggest_extent(read) == "whole"
    assert suggest_extent(labels(6, 8)) == "painted"
    with layer_source(path="mask.tif"):
        predicted = predict(labels(6, 8), Image(np.zeros((6, 8))))
    assert suggest_extent(predicted) == "painted"


def test_the_next_label_takes_the_brush_for_no_object():
    layer = labels(6, 8)
    assert next_label(layer) == 1
    assert next_label(layer, first=3) == 3
    layer.data[0, 0], layer.data[1, 1] = 7, BACKGROUND_BRUSH
    assert next_label(layer) == 8
    layer.data[0, 0] = BACKGROUND_BRUSH - 2
    assert next_label(layer) == BACKGROUND_BRUSH + 1
    layer.data[0, 0] = BACKGROUND_BRUSH + 1
    assert next_label(layer) == BACKGROUND_BRUSH + 2


def test_small_integers_run_out():
    layer = Labels(np.full((6, 8), 252, np.uint8), name="mine")
    assert next_label(layer) == 255  # 254 is the background brush
    layer.data[1, 1] = background_brush(np.uint8)
    assert next_label(layer) == 255
    assert brush_in(layer.data) == 254
    layer.data[0, 0] = 255
    with pytest.raises(DataError, match="“mine” cannot hold a number above 255"):
        next_label(layer)


def test_counts_in_words():
    count = Count(
        pixels={0: 10, 1: 3400}, objects=1, known=3410, total=81920, changed=0
    )
    line = count_line(count, Aim(output="objects")).replace("\u202f", " ")
    assert line == "1 object · 3 410 of 81 920 pixels count"
    aim = Aim(output="classes", classes=("background", "gland"))
    count = replace(count, pixels={0: 10, 1: 5, 4: 9}, changed=12)
    line = count_line(count, aim).replace("\u202f", " ")
    assert line == (
        "background: 10 · gland: 5 · class 4: 9"
        " · 3 410 of 81 920 pixels count · 12 changed"
    )


@pytest.mark.parametrize("output", ["objects", "classes"])
def test_each_choice_is_explained_differently(output):
    aim = Aim(output=output)
    told = {
        explain(extent, aim=aim, predicted=predicted)
        for extent in ("whole", "regions", "painted")
        for predicted in (True, False)
    }
    assert len(told) >= 5
    assert "background" in explain("whole", aim=aim, predicted=False)


def test_the_sample_of_an_image_is_found_again(tmp_path):
    training_set = TrainingSet(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    said = np.zeros((40, 50), np.int32)
    said[5:20, 5:20] = 1
    source = {
        "path": "a.tif",
        "image": "a",
        "shape": [40, 50],
        "slices": "filled",
        "shown": None,
    }
    first = Correction(
        image=pixels, axes="YX", labels=said, output="objects", source=source
    )
    older = training_set.add(first)
    sample = training_set.add(first)
    samples = training_set.samples()
    digest = hash_image(pixels, "YX")
    pathless = source | {"path": None}
    assert sample_for(samples, pathless, "objects", digest) == sample
    assert sample_for((older,), pathless, "objects", digest) == older
    assert sample_for(samples, pathless, "classes", digest) is None
    # Further slices of the same file; but none of a layer without one.
    assert sample_for(samples, source, "objects", "") == sample
    assert sample_for(samples, pathless, "objects", "") is None
    assert sample_for(samples, source | {"slices": "all"}, "objects", "") is None
