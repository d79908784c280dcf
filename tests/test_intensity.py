"""From pixels to what a network sees: which channels, and on what scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import color, data

from napari_attunet.channels import (
    CHANNEL_CHOICES,
    STAINS,
    choose_channels,
    parse_channels,
)
from napari_attunet.errors import ChannelError, DataError
from napari_attunet.intensity import Scaling, measure_scaling
from napari_attunet.spec import Normalization
from napari_attunet.view import ImageView

GREY, RGB = ("grey",), ("red", "green", "blue")
KINDS = ("percentile", "transmission", "zscore", "none")
DTYPES = [
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", ">u2"),
]


def choose(image, spec_channels=GREY, choice="auto", axes="YXC"):
    """Choose for an image, (C, ...)."""
    return choose_channels(
        choice,
        n_channels=len(image),
        axes=axes,
        spec_channels=spec_channels,
        sample=image.reshape(len(image), -1),
        dtype=image.dtype,
    )


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """Stained tissue, (C, Y, X)."""
    return np.moveaxis(data.immunohistochemistry(), -1, 0)


def noise(shape: tuple[int, ...], mean: float, seed: int = 0) -> np.ndarray:
    """A picture of an even ground with camera noise, uint8."""
    values = np.random.default_rng(seed).normal(mean, 3, shape)
    return values.clip(0, 255).astype(np.uint8)


# ---- which channels --------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_channels_pass_through(dtype) -> None:
    image = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(dtype)
    mixed = choose(image, ("a", "b"))(image)
    assert mixed.dtype in (np.float32, np.float64)
    assert np.array_equal(mixed, image.astype(float))


def test_alpha_is_dropped_for_colour() -> None:
    image = noise((4, 5, 5), 100)
    for spec in (RGB, ("channel 0", "channel 1", "channel 2")):
        mixer = choose(image, spec)
        assert np.array_equal(mixer(image), image[:3])
        assert "alpha" in mixer.description


def test_channels_first_are_colour_to_a_model_of_colour() -> None:
    image = noise((4, 5, 5), 100)
    assert np.array_equal(choose(image, RGB, axes="CYX")(image), image[:3])
    stains = choose(image, STAINS, axes="CYX")
    assert np.array_equal(stains(image), choose(image, STAINS)(image))
    with pytest.raises(ChannelError):  # four markers
        choose(image, ("channel 0", "channel 1", "channel 2"), axes="CYX")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        (" Auto", "auto"),
        ("inverted-luminance", "inverted luminance"),
        ("channel 3", (3,)),
        ("channel-1", (1,)),
        ("2,0", (2, 0)),
        ("channels 2 , 10", (2, 10)),
        ("half-blue", "half blue"),
        ("", ""),
    ],
)
def test_what_users_write_of_channels(text, choice) -> None:
    assert parse_channels(text) == choice


def test_grey_is_repeated_for_colour() -> None:
    image = noise((1, 5, 5), 100)
    assert np.array_equal(choose(image, RGB)(image), image.repeat(3, axis=0))
    assert np.array_equal(choose(image, RGB, (0,))(image), image.repeat(3, axis=0))


def test_channels_are_picked_by_number() -> None:
    image = noise((5, 4, 4), 100)
    assert np.array_equal(choose(image, ("a", "b"), (3, 1))(image), image[[3, 1]])
    mixer = choose(image, choice=(4,))
    assert np.array_equal(mixer(image), image[4:])
    assert mixer.description == "channel 4"


def test_stained_tissue_enters_as_haematoxylin(tissue) -> None:
    mixer = choose(tissue)
    assert "haematoxylin" in mixer.description
    expected = color.rgb2hed(np.moveaxis(tissue, 0, -1))[..., 0]
    assert mixer(tissue).shape == (1, 512, 512)
    assert np.allclose(mixer(tissue)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:, :200],
        lambda t: np.concatenate([t, np.full_like(t[:1], 255)]),
        lambda t: t.astype(np.uint16),
        lambda t: t.astype(np.uint16) * 257,
        lambda t: t.astype(np.int64),
        lambda t: t / 255,
        lambda t: t.astype(np.float32),
        lambda t: (t / 255).astype(np.float16),
        lambda t: t / 255 * 1000,
    ],
    ids=["part", "rgba", "u8 in u16", "u16", "i64", "0-1", "0-255", "f16", "0-1000"],
)
def test_haematoxylin_does_not_depend_on_how_the_picture_is_stored(
    tissue, change
) -> None:
    image = change(tissue)
    mixer = choose(image)
    assert "haematoxylin" in mixer.description
    reference = choose(tissue)(tissue)[:, : image.shape[1]]
    assert np.allclose(mixer(image), reference, atol=0.02)
    assert np.corrcoef(mixer(image).ravel(), reference.ravel())[0, 1] > 0.99


def test_white_is_255_in_pictures_of_floats_too(tissue) -> None:
    dim = (tissue * 0.8).astype(np.uint8)
    dim_float = dim.astype(np.float32)
    assert np.allclose(choose(dim_float)(dim_float), choose(dim)(dim), atol=1e-6)


def test_sparse_stain_under_a_yellow_lamp_is_still_stain() -> None:
    image = noise((3, 100, 100), 225)
    image[:, :15, :20] = np.array([90, 60, 130])[:, None, None]
    image[2] = image[2] * 0.75
    assert "haematoxylin" in choose(image).description


def test_grey_pictures_on_a_bright_ground_are_inverted() -> None:
    grey = noise((1, 100, 100), 200)
    grey[:, :30, :30] = 60
    tinted = (grey * np.array([1, 0.95, 0.7])[:, None, None]).astype(np.uint8)
    mixer = choose(tinted)
    assert mixer.description == "inverted luminance"
    inside, outside = mixer(tinted)[0, :30, :30], mixer(tinted)[0, 30:, 30:]
    assert inside.min() > outside.max() > 0


@pytest.mark.parametrize("hue", [(0, 0, 1), (0, 1, 0), (1, 1, 1)])
def test_fluorescence_saved_as_colour_enters_as_luminance(hue) -> None:
    grey = noise((1, 100, 100), 10)
    grey[:, :30, :30] = 220
    image = (grey * np.array(hue)[:, None, None]).astype(np.uint8)
    mixer = choose(image)
    assert mixer.description == "luminance"
    expected = color.rgb2gray(np.moveaxis(image, 0, -1)) * 255
    assert np.allclose(mixer(image)[0], expected, atol=1e-3)


def test_words_work_on_grey_where_they_mean_something() -> None:
    image = noise((1, 5, 5), 100)
    assert np.array_equal(choose(image, choice="luminance")(image), image)
    inverted = choose(image, choice="inverted luminance")(image)
    assert np.array_equal(inverted, 255.0 - image)
    mask = image > 100
    assert np.array_equal(choose(mask, choice="inverted luminance")(mask), ~mask)


@pytest.mark.parametrize(
    ("n_channels", "axes", "spec", "choice", "message"),
    [
        (5, "YXC", GREY, "auto", "Choose which channel to use, from 0 to 4"),
        (2, "YXC", GREY, "auto", "Choose which channel to use, from 0 to 1.$"),
        (3, "CYX", GREY, "auto", "from 0 to 2; or if .* luminance or haematoxylin"),
        (5, "YXC", RGB, "auto", "which 3 channels to use, from 0 to 4"),
        (4, "YXC", ("dapi", "actin", "golgi"), "auto", "which 3 channels"),
        (1, "YX", ("dapi", "actin"), "auto", "no channel axis.*name it C"),
        (2, "YXC", RGB, "auto", "2 channels, but the model takes 3"),
        (1, "YX", GREY, "haematoxylin", "no channel axis. Choose 'auto'"),
        (2, "YXC", GREY, "luminance", "Choose a channel from 0 to 1"),
        (3, "YXC", RGB, "luminance", "makes one channel"),
        (3, "YXC", GREY, "hematoxylin", "one of auto, luminance"),
        (3, "YXC", GREY, (3,), "channels 0 to 2"),
        (3, "YXC", GREY, (-1,), "channels 0 to 2"),
        (1, "YX", GREY, (1,), "one channel, 0"),
        (3, "YXC", GREY, (0, 1), "Choose as many"),
        (3, "YXC", GREY, (), "Choose as many"),
    ],
)
def test_a_mismatch_says_what_to_choose(
    n_channels, axes, spec, choice, message
) -> None:
    with pytest.raises(DataError, match=message):
        choose(np.zeros((n_channels, 4), np.uint8), spec, choice, axes)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from(["bool", "uint8", "int16", "float16", "float32", "float64"]),
        st.tuples(st.sampled_from([1, 3, 4]), st.integers(1, 6)),
    ),
    st.sampled_from(CHANNEL_CHOICES),
    st.sampled_from(KINDS),
)
def test_any_image_becomes_finite_float32(image, choice, kind) -> None:
    if choice == "haematoxylin" and len(image) == 1:
        return
    mixed = choose(image, choice=choice)(image)
    scaled = measure_scaling(Normalization(kind=kind), mixed)(mixed)
    assert scaled.dtype == np.float32
    assert scaled.shape == (1, image.shape[1])
    assert np.isfinite(scaled).all()


@pytest.mark.parametrize("choice", CHANNEL_CHOICES)
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_are_scaled_like_the_whole(tissue, choice, kind) -> None:
    view = ImageView(tissue, "CYX", ndim=2)
    mixer = choose(view.sample(), choice=choice)
    scaling = measure_scaling(Normalization(kind=kind), mixer(view.sample()))
    whole = scaling(mixer(tissue))
    tile = view.read((), (slice(100, 133), slice(7, 90)))
    assert np.allclose(scaling(mixer(tile)), whole[:, 100:133, 7:90], rtol=0, atol=1e-4)
    assert mixer(tissue[:, :0]).shape == (1, 0, 512)


# ---- which scale -----------------------------------------------------------------


def test_percentiles_become_0_and_1() -> None:
    sample = np.random.default_rng(0).normal(500, 100, (2, 10_000)).astype(np.float32)
    sample[1] *= 3
    scaled = measure_scaling(Normalization(low=5, high=95), sample)(sample)
    assert np.allclose(
        np.percentile(scaled, [5, 95], axis=1), [[0, 0], [1, 1]], atol=1e-5
    )
    together = Normalization(low=5, high=95, per_channel=False)
    scaled = measure_scaling(together, sample)(sample)
    assert np.allclose(np.percentile(scaled, [5, 95]), [0, 1], atol=1e-5)
    scaling = measure_scaling(together, sample)
    assert len(set(scaling.gain)) == len(set(scaling.offset)) == 1


def test_transmission_does_not_depend_on_what_is_darkest() -> None:
    white = np.full((1, 10_000), 240, np.uint8)
    few, many = white.copy(), white.copy()
    few[:, :20] = many[:, :4000] = 60
    normalization = Normalization(kind="transmission")
    for sample in (few, many):
        scaled = measure_scaling(normalization, sample)(sample)
        assert np.allclose(scaled[0, [0, -1]], [0.25, 1])
    assert (measure_scaling(normalization, white)(white) == 1).all()
    dark = -np.arange(50.0)[None]  # no light at all
    assert (measure_scaling(normalization, dark)(dark) == 0).all()


def test_zscore_has_mean_0_and_deviation_1() -> None:
    sample = np.random.default_rng(0).gamma(2, 100, (2, 10_000))
    scaled = measure_scaling(Normalization(kind="zscore"), sample)(sample)
    assert np.allclose(scaled.mean(axis=1), 0, atol=1e-5)
    assert np.allclose(scaled.std(axis=1), 1, atol=1e-5)


def test_none_leaves_values_and_clip_limits_them() -> None:
    sample = np.array([[-5, 0, 7]], np.int16)
    scaling = measure_scaling(Normalization(kind="none", clip=(-1, 3)), sample)
    assert scaling(sample).tolist() == [[-1, 0, 3]]
    scaling = measure_scaling(Normalization(kind="none"), sample)
    assert scaling(sample).tolist() == [[-5, 0, 7]]


@pytest.mark.parametrize("kind", ["percentile", "zscore"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_image_becomes_0(kind, dtype) -> None:
    sample = np.ones((1, 50), dtype)
    scaling = measure_scaling(Normalization(kind=kind), sample)
    assert (scaling(sample) == 0).all()
    if np.dtype(dtype).kind == "f":
        assert scaling(np.array([[np.inf]], dtype)).item() == scaling.ends[1]


@pytest.mark.parametrize("kind", ["percentile", "zscore"])
def test_rounding_errors_are_not_blown_up(kind) -> None:
    sample = np.float32(0.1) + np.array([[0, 0, 1e-8, -1e-8] * 10], np.float32)
    assert (measure_scaling(Normalization(kind=kind), sample)(sample) == 0).all()


def test_few_bright_spots_in_the_dark_are_seen() -> None:
    sample = np.zeros((1, 10_000), np.uint16)
    sample[:, :10] = 4000
    scaled = measure_scaling(Normalization(), sample)(sample)
    assert scaled.min() == 0
    assert scaled.max() == 1


@pytest.mark.parametrize("dtype", ["uint32", "int64", "float64"])
def test_small_differences_of_large_values_survive(dtype) -> None:
    small = np.arange(100, dtype=dtype).reshape(1, 100)
    large = small + np.array(4_000_000_000, dtype)
    expected = measure_scaling(Normalization(), small)(small)
    mixed = choose(large)(large)
    assert np.allclose(
        measure_scaling(Normalization(), mixed)(mixed), expected, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinities_do_not_count_and_get_their_ends(kind) -> None:
    normal = np.random.default_rng(0).normal(5, 2, (1, 1000)).astype(np.float32)
    spoilt = normal.copy()
    spoilt[0, :9] = [np.nan, np.inf, -np.inf] * 3
    clean = measure_scaling(Normalization(kind=kind), normal[:, 9:])
    scaling = measure_scaling(Normalization(kind=kind), spoilt)
    assert scaling == clean
    low, high = scaling.ends
    assert low < high
    assert np.allclose(scaling(spoilt)[0, :3], [0, high, low])
    assert np.array_equal(scaling(spoilt)[:, 9:], clean(normal)[:, 9:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "values", [(-1e308, 0, 1e308), (0, 5e-324, 0), (1, 1e300, 2), (1e300,)]
)
def test_the_largest_and_smallest_numbers_stay_numbers(kind, values) -> None:
    sample = np.array([values])
    scaling = measure_scaling(Normalization(kind=kind), sample)
    assert np.isfinite([*scaling.offset, *scaling.gain, *scaling.ends]).all()
    assert np.isfinite(scaling(sample)).all()


def test_an_image_of_nan_only_becomes_0() -> None:
    sample = np.full((2, 10), np.nan)
    for kind in KINDS:
        scaling = measure_scaling(Normalization(kind=kind), sample)
        assert (scaling(sample) == 0).all()
    colour = np.full((3, 10), np.nan)
    assert np.isnan(choose(colour)(colour)).all()


def test_a_scaling_refuses_other_channels() -> None:
    with pytest.raises(ValueError, match="2 channels were measured"):
        Scaling((0.0, 0.0), (1.0, 1.0))(np.zeros((1, 4)))


@pytest.mark.parametrize("channels", [3, 4])
def test_stains_along_another_axis_are_no_colours(channels) -> None:
    """Two markers and a nuclear stain must not be taken for red, green and blue."""
    image = np.random.default_rng(0).integers(0, 999, (channels, 40)).astype(np.uint16)
    with pytest.raises(DataError, match="Choose which channel"):
        choose(image, GREY, axes="CYX")
    assert choose(image, GREY, (1,), axes="CYX").description == "channel 1"
    if channels == 4:
        with pytest.raises(DataError, match="which 3 channels"):
            choose(image, ("channel 0", "channel 1", "channel 2"), axes="CYX")
