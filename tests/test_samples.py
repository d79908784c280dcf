from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from napari_attunet.errors import DataError
from napari_attunet.samples import immunohistochemistry, synthetic_nuclei


@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=3).map(tuple),
    n=st.none() | st.integers(0, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_labels_are_consecutive_whole_and_fit_the_image(shape, n, seed):
    image, labels = synthetic_nuclei(shape, n=n, seed=seed)
    assert image.shape == labels.shape == shape
    assert image.dtype == np.uint16
    assert labels.dtype == np.int32
    numbers = np.unique(labels[labels > 0])
    assert numbers.tolist() == list(range(1, labels.max() + 1))
    assert n is None or labels.max() <= n
    for number in numbers:
        assert ndimage.label(labels == number)[1] == 1


@pytest.mark.parametrize("shape", [(192, 192), (32, 64, 64)])
def test_nuclei_are_bright_crowded_and_uneven(shape):
    image, labels = synthetic_nuclei(shape, seed=1)
    assert 0.1 < (labels > 0).mean() < 0.5
    background = np.median(image[labels == 0])
    brightness = (
        ndimage.median(image, labels, np.arange(1, labels.max() + 1)) - background
    )
    assert np.mean(brightness > 60) > 0.9
    assert brightness.std() / brightness.mean() > 0.15
    above = np.where(labels > 0, labels, labels.max() + 1)
    touching = (labels > 0) & (ndimage.minimum_filter(above, 3) != labels)
    assert len(np.unique(labels[touching])) >= 2
    assert image.max() < 2**16 - 1  # the camera is not saturated


def test_the_seed_decides():
    image, labels = synthetic_nuclei((64, 64), seed=3)
    again, again_labels = synthetic_nuclei((64, 64), seed=3)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, again_labels)
    assert not np.array_equal(image, synthetic_nuclei((64, 64), seed=4)[0])


def test_the_number_is_kept_where_there_is_room():
    assert synthetic_nuclei((200, 200), n=7)[1].max() == 7
    assert not synthetic_nuclei((20, 20), n=0)[1].any()


@pytest.mark.parametrize("shape", [(64,), (4, 4, 4, 4), (0, 5)])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(DataError, match="two or three axes"):
        synthetic_nuclei(shape)


def test_haematoxylin_is_bright_where_the_tissue_is_blue():
    rgb, stain = immunohistochemistry()
    assert rgb.shape == (512, 512, 3)
    assert rgb.dtype == np.uint8
    assert stain.shape == (512, 512)
    assert stain.dtype == np.float32
    assert (stain.min(), stain.max()) == (0, 1)
    red, blue = rgb[..., 0].astype(int), rgb[..., 2].astype(int)
    nuclei = (blue - red > 40) & (red < 160)
    paper = rgb.min(axis=-1) > 220
    assert nuclei.sum() > 500
    assert np.median(stain[nuclei]) > np.median(stain[paper]) + 0.3
