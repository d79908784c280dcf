from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_attunet.tiling import Tiling


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Tiling, tuple[int, ...]]:
    """A tiling, and a scale that divides its divisor, with few tiles in all."""
    ndim = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    scale = each(1, 4)
    divisor = tuple(s * d for s, d in zip(scale, each(1, 4), strict=True))
    tiling = Tiling(each(1, 45), tile=each(8, 30), halo=each(0, 40), divisor=divisor)
    return tiling, scale


laws = settings(max_examples=60, deadline=None)


@laws
@given(tilings())
def test_every_pixel_is_written_once_from_where_it_was_read(case) -> None:
    tiling, _ = case
    image = np.arange(math.prod(tiling.shape)).reshape(tiling.shape)
    rest = zip(tiling.padded_shape, tiling.shape, strict=True)
    padded = np.pad(image, [(0, p - s) for p, s in rest], constant_values=-1)
    written = np.zeros(tiling.shape, int)
    copy = np.full(tiling.shape, -2)
    tiles = list(tiling)
    for tile in tiles:
        kept = tuple(slice(0, w.stop - w.start) for w in tile.write)
        copy[tile.write] = padded[tile.read][tile.part][kept]
        written[tile.write] += 1
    assert (written == 1).all()
    assert np.array_equal(copy, image)
    assert len(tiles) == len(tiling) == math.prod(tiling.counts)


@laws
@given(tilings())
def test_reads_lie_on_the_grid_inside_the_padded_image_with_the_full_halo(case) -> None:
    tiling, _ = case
    for tile in tiling:
        for axis, (read, part, write) in enumerate(
            zip(tile.read, tile.part, tile.write, strict=True)
        ):
            divisor, halo = tiling.divisor[axis], tiling.halo[axis]
            assert (
                read.start % divisor
                == read.stop % divisor
                == write.start % divisor
                == 0
            )
            assert 0 <= read.start < read.stop <= tiling.padded_shape[axis]
            assert read.start == max(0, write.start - halo)
            assert read.stop >= min(write.stop + halo, tiling.padded_shape[axis])
            assert read.stop - read.start <= tiling.tile[axis] + 2 * halo
            assert write.stop - write.start <= tiling.tile[axis]
            assert read.start + part.start == write.start
            assert read.start + part.stop == -(-write.stop // divisor) * divisor


@laws
@given(tilings())
def test_every_coarse_cell_is_written_once_from_where_it_was_read(case) -> None:
    tiling, scale = case
    shape = tiling.coarse_shape(scale)
    padded = [p // s for p, s in zip(tiling.padded_shape, scale, strict=True)]
    cells = np.arange(math.prod(padded)).reshape(padded)
    written = np.zeros(shape, int)
    copy = np.full(shape, -1)
    for tile in tiling:
        write = tile.on_grid(scale)
        part = tuple(
            slice(p.start // s, p.stop // s)
            for p, s in zip(tile.part, scale, strict=True)
        )
        read = tuple(
            slice(r.start // s, r.stop // s)
            for r, s in zip(tile.read, scale, strict=True)
        )
        kept = tuple(slice(0, w.stop - w.start) for w in write)
        copy[write] = cells[read][part][kept]
        written[write] += 1
    assert (written == 1).all()
    assert np.array_equal(copy, cells[tuple(slice(0, n) for n in shape)])


def test_worked_example_is_the_drawing() -> None:
    first, second, last = Tiling((37,), tile=16, halo=8, divisor=4)
    assert (first.read, first.part, first.write) == (
        (slice(0, 24),),
        (slice(0, 16),),
        (slice(0, 16),),
    )
    assert (second.read, second.part, second.write) == (
        (slice(8, 40),),
        (slice(8, 24),),
        (slice(16, 32),),
    )
    assert (last.read, last.part, last.write) == (
        (slice(24, 40),),
        (slice(8, 16),),
        (slice(32, 37),),
    )
    assert last.on_grid(4) == (slice(8, 10),)


def test_an_image_smaller_than_a_tile_is_one_tile() -> None:
    (tile,) = Tiling((5, 1), tile=512, halo=64, divisor=16)
    assert tile.read == (slice(0, 16), slice(0, 16))
    assert tile.part == tile.read
    assert tile.write == (slice(0, 5), slice(0, 1))


def test_sizes_are_rounded_up_to_the_divisor() -> None:
    tiling = Tiling((100, 100), tile=(30, 32), halo=(1, 0), divisor=(16, 8))
    assert (tiling.tile, tiling.halo) == ((32, 32), (16, 0))
    assert tiling.padded_shape == (112, 104)
    assert tiling.coarse_shape((16, 8)) == (7, 13)
    assert "tile=(32, 32)" in repr(tiling)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": (0, 5)}, "shape"),
        ({"tile": 0}, "tile"),
        ({"halo": -1}, "halo"),
        ({"divisor": (2, 2, 2)}, "divisor"),
    ],
    ids=["empty", "no tile", "negative halo", "too many"],
)
def test_senseless_sizes_are_refused(changed, message) -> None:
    options = {"shape": (5, 5), "tile": 4, "halo": 2, "divisor": 2} | changed
    with pytest.raises(ValueError, match=message):
        Tiling(options.pop("shape"), **options)


def test_a_grid_that_the_divisor_does_not_fit_is_refused() -> None:
    tile = next(iter(Tiling((40,), tile=16, halo=8, divisor=8)))
    with pytest.raises(ValueError, match="grid of 5"):
        tile.on_grid(5)
