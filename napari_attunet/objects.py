"""From probabilities to labels.

A network that tells objects apart predicts three classes: background, the interior of
objects, and their boundary. `napari_attunet.training.targets` draws these classes into
a label image for training; `object_labels` turns predicted ones back into numbered
objects. The boundary lies inside the objects, so that it separates those that touch,
and interior plus boundary is the whole object. The idea is that of

    Caicedo et al. 2019, "Evaluation of Deep Learning Strategies for Nucleus
    Segmentation in Fluorescence Images", https://doi.org/10.1002/cyto.a.23863
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_attunet.memory import give_back

if TYPE_CHECKING:
    from napari_attunet.spec import ObjectSettings

__all__ = [
    "BACKGROUND",
    "BOUNDARY",
    "INTERIOR",
    "class_labels",
    "object_labels",
    "objects_within",
]

# skimage is imported where it is used: its parts take longer than a dock to open.

BACKGROUND, INTERIOR, BOUNDARY = 0, 1, 2

#: Standard deviation and reach, in pixels, of the smoothing of a distance map: without
#: it every step of a pixelated edge raises a ridge of its own.
SMOOTHING, SMOOTHING_REACH = 1.0, 4
#: Distances to the edge are told apart up to so many pixels: larger objects than that
#: have no necks worth looking for.
FARTHEST = 96
#: Rows (of volumes planes) that are worked on at once, as far as objects allow.
SLAB = 512
#: Less than this is no difference between two distances.
ROUNDING = 1e-4

Labels = npt.NDArray[np.int32]


def class_labels(
    probabilities: npt.NDArray[np.floating[Any]], *, threshold: float | None = None
) -> Labels:
    """Return the class of every pixel.

    Parameters
    ----------
    probabilities : (K, [Z,] Y, X) array of float
        Probability of every class, background first.
    threshold : float, optional
        By default the most probable class wins. With a threshold, the most probable
        of the foreground classes wins where its own probability reaches it, and the
        background everywhere else: below 0.5 finds more, above finds less.

    Returns
    -------
    labels : ([Z,] Y, X) array of int32
    """
    if probabilities.ndim < 2 or probabilities.shape[0] < 2:
        raise ValueError(
            "Probabilities need a first axis of at least two classes, got an array of "
            f"shape {probabilities.shape}."
        )
    if threshold is None:
        best: Labels = np.argmax(probabilities, axis=0).astype(np.int32)
        return best
    foreground = probabilities[1:]
    labels: Labels = np.argmax(foreground, axis=0).astype(np.int32)
    labels += 1
    labels[~(np.max(foreground, axis=0) >= threshold)] = BACKGROUND
    return labels


def object_labels(
    interior: npt.NDArray[np.floating[Any]],
    boundary: npt.NDArray[np.floating[Any]],
    settings: ObjectSettings,
) -> Labels:
    """Return numbered objects.

    Connected foreground with at most one seed is one object as it stands; only where
    several seeds share it, a seeded watershed on the interior probability divides it,
    within its bounding box. The result is that of one watershed of the whole image
    (pixels between seeds of exactly equal probability may fall to either, as they do
    there), and most pixels never enter a queue.

    Parameters
    ----------
    interior, boundary : ([Z,] Y, X) array of float
        Probabilities of the two classes. A pixel that is not a number is background.
    settings : ObjectSettings
        Thresholds, minimum size, holes.

    Returns
    -------
    labels : ([Z,] Y, X) array of int32
        0 is background, objects are numbered from 1 without a gap.
    """
    if interior.shape != boundary.shape:
        raise ValueError(
            "Interior and boundary must have one shape, got "
            f"{interior.shape} and {boundary.shape}."
        )
    foreground = np.empty(interior.shape, bool)
    for rows in _slabs(interior):
        total = np.add(interior[rows], boundary[rows], dtype=np.float32)
        foreground[rows] = total >= settings.foreground_threshold
    return objects_within(foreground, interior, settings)


def objects_within(
    foreground: npt.NDArray[np.bool_],
    interior: npt.NDArray[np.floating[Any]],
    settings: ObjectSettings,
) -> Labels:
    """Return numbered objects, as `object_labels`.

    Parameters
    ----------
    foreground : ([Z,] Y, X) array of bool
        Where there are objects.
    interior : ([Z,] Y, X) array of float
        Probability of their interior.
    settings : ObjectSettings
        Thresholds, minimum size, holes.
    """
    if interior.size == 0:
        return np.zeros(interior.shape, np.int32)
    # In what is learnt, interiors of two objects never share a face or an edge (the
    # pixels between would have to belong to both): such neighbours are one seed.
    seeds = _components(
        foreground & (interior >= settings.seed_threshold), diagonals=True
    )
    if settings.split_depth:
        if settings.fill_holes:
            # A doubtful spot inside an object would be an edge to its distance map.
            _fill_holes(seeds)
        _part_necks(seeds, settings.split_depth)
    give_back()  # what slabs leave behind, before whole images of numbers come
    labels = _components(foreground)
    _split(labels, seeds, interior)
    del seeds
    give_back()
    if settings.fill_holes:
        _fill_holes(labels)
    _renumber(labels, min_size=settings.min_size)
    return labels


def _slabs(image: npt.NDArray[Any], more: int = 0) -> Iterator[slice]:
    """Yield slices of rows, each with so many more below as there are."""
    for start in range(0, len(image), SLAB):
        yield slice(start, min(start + SLAB + more, len(image)))


def _components(mask: npt.NDArray[np.bool_], *, diagonals: bool = False) -> Labels:
    """Number the connected parts of a mask, neighbours sharing a face or an edge."""
    neighbours = ndimage.generate_binary_structure(mask.ndim, 2 if diagonals else 1)
    components = np.empty(mask.shape, np.int32)
    ndimage.label(mask, neighbours, output=components)
    return components


def _part_necks(seeds: Labels, depth: float) -> None:
    """Divide, in place, every seed at its necks, and drop those too thin to count.

    The h-maxima of the smoothed distance to the edge say how many round parts a seed
    has, and its watershed where they meet: Malpica et al. 1997, "Applying watershed
    algorithms to the segmentation of clustered nuclei",
    https://doi.org/10.1002/(SICI)1097-0320(19970801)28:4%3C289::AID-CYTO3%3E3.0.CO;2-7
    """
    seeded = seeds > 0
    boxes = ndimage.find_objects(seeds)
    starts = np.array([box[0].start for box in boxes], int)
    last = len(boxes)
    for slab in _slabs(seeds):
        begun = np.flatnonzero((starts >= slab.start) & (starts < slab.stop))
        if begun.size:
            rows = slice(slab.start, max(boxes[i][0].stop for i in begun))
            last = _part_in_rows(seeds, seeded, rows, begun + 1, boxes, depth, last)


def _part_in_rows(
    seeds: Labels,
    seeded: npt.NDArray[np.bool_],
    rows: slice,
    numbers: npt.NDArray[np.intp],
    boxes: list[tuple[slice, ...]],
    depth: float,
    last: int,
) -> int:
    """Divide some seeds, all of whose pixels lie in these rows.

    Returns the last number that is in use.
    """
    from skimage.morphology import reconstruction
    from skimage.segmentation import watershed

    low, high = max(rows.start - 1, 0), min(rows.stop + 1, len(seeds))
    distance = _edge_distance(seeded, slice(low, high))
    neighbours = np.ones((3,) * seeds.ndim, bool)
    is_peak = ndimage.maximum_filter(distance, footprint=neighbours) <= distance
    inner = slice(rows.start - low, rows.stop - low)
    distance, is_peak = distance[inner], is_peak[inner]
    here = seeds[rows]
    ours = np.zeros(int(here.max(initial=0)) + 1, bool)
    ours[numbers] = True
    height = np.zeros(ours.size, np.float32)
    np.maximum.at(height, here, distance)
    thin = ours & (height < depth - ROUNDING)
    here[thin[here]] = 0
    # Most seeds have one peak and are done with; only the others are looked into.
    is_peak &= ours[here]
    peaks = _components(is_peak, diagonals=True)
    lowest, highest = _extrema(here[is_peak], peaks[is_peak], ours.size - 1)
    for seed in np.flatnonzero(lowest < highest):
        first, *others = boxes[seed - 1]
        box = (slice(first.start - rows.start, first.stop - rows.start), *others)
        mask = here[box] == seed
        local = np.where(mask, distance[box], 0).astype(np.float64)
        domes_of = local - reconstruction(np.maximum(local - depth, 0), local)
        domes = _components(domes_of > ROUNDING, diagonals=True)
        count = int(domes.max())
        rise = ndimage.maximum(domes_of, domes, np.arange(1, count + 1))
        high_enough = np.flatnonzero(rise >= depth - ROUNDING) + 1
        if high_enough.size < 2:
            continue
        domes[~np.isin(domes, high_enough)] = 0
        parts = watershed(-local, markers=domes, mask=mask)
        # What hangs on by a corner is not reached, and keeps the number it had.
        reached = parts > 0
        here[box][reached] = parts[reached] + last
        last += count
    return last


def _edge_distance(
    seeded: npt.NDArray[np.bool_], rows: slice
) -> npt.NDArray[np.float32]:
    """Return the smoothed distance of each pixel of a seed to the seed's edge.

    Of these rows, as it is in the whole image: distances are cut off at `FARTHEST`.
    """
    margin = FARTHEST + SMOOTHING_REACH
    low, high = max(rows.start - margin, 0), min(rows.stop + margin, len(seeded))
    # The image's border is an edge like any other.
    inside = np.pad(seeded[low:high], 1)
    distance = ndimage.distance_transform_edt(inside)[(slice(1, -1),) * seeded.ndim]
    distance = np.minimum(distance, FARTHEST)
    distance = ndimage.gaussian_filter(distance, SMOOTHING, radius=SMOOTHING_REACH)
    smooth: npt.NDArray[np.float32] = distance.astype(np.float32)
    return smooth[rows.start - low : rows.stop - low]


def _split(
    regions: Labels, seeds: Labels, interior: npt.NDArray[np.floating[Any]]
) -> None:
    """Divide, in place, every region that holds more than one seed."""
    from skimage.segmentation import watershed

    last_seed = int(seeds.max())
    lowest, highest = _bounds(last_seed)
    for rows in _slabs(seeds):
        seeded = seeds[rows] > 0
        _extend(lowest, highest, seeds[rows][seeded], regions[rows][seeded])
    astride = lowest < highest  # across an edge, in two regions
    if astride.any():
        found = [
            np.flatnonzero(astride[seeds[rows]]) + rows.start * seeds[0].size
            for rows in _slabs(seeds)
        ]
        at = np.concatenate(found)
        pairs = np.stack([seeds.flat[at], regions.flat[at]])
        _, number = np.unique(pairs, axis=1, return_inverse=True)
        seeds.flat[at] = last_seed + 1 + number.ravel()
        last_seed = int(seeds.max())
    region_of_seed = np.zeros(last_seed + 1, np.int32)
    for rows in _slabs(seeds):
        seeded = seeds[rows] > 0
        region_of_seed[seeds[rows][seeded]] = regions[rows][seeded]
    last_region = int(regions.max())
    seeds_in_region = np.bincount(region_of_seed, minlength=last_region + 1)
    seeds_in_region[0] = 0
    crowded = np.flatnonzero(seeds_in_region > 1)
    if crowded.size == 0:
        return
    boxes = ndimage.find_objects(regions)
    for region in crowded:
        box = boxes[region - 1]
        here = regions[box] == region
        local = np.where(here, seeds[box], 0)
        # A seed's pixels with nothing but that seed around them reach no new pixel:
        # without them the watershed is the same, and much shorter.
        core = ndimage.binary_erosion(local > 0)
        parts = watershed(
            -interior[box].astype(np.float32), markers=local, mask=here & ~core
        )
        parts[core] = local[core]
        regions[box][here] = parts[here] + last_region


def _bounds(last: int) -> tuple[Labels, Labels]:
    """Return lowest and highest values of groups from 0 to ``last`` without any yet.

    The lowest is above the highest, which is 0.
    """
    lowest = np.full(last + 1, np.iinfo(np.int32).max, np.int32)
    return lowest, np.zeros(last + 1, np.int32)


def _extend(lowest: Labels, highest: Labels, groups: Labels, values: Labels) -> None:
    """Widen, in place, the bounds of groups by some of their values."""
    np.minimum.at(lowest, groups, values)
    np.maximum.at(highest, groups, values)


def _extrema(groups: Labels, values: Labels, last: int) -> tuple[Labels, Labels]:
    """Return the lowest and the highest value of each group, as `_bounds`."""
    lowest, highest = _bounds(last)
    _extend(lowest, highest, groups, values)
    return lowest, highest


def _fill_holes(labels: Labels) -> None:
    """Fill, in place, background that a single object encloses.

    Background that reaches the image's border, or that touches two objects, stays.
    """
    holes = _components(labels == 0)
    last = int(holes.max())
    closed = np.ones(last + 1, bool)
    for axis in range(labels.ndim):
        by_axis = np.moveaxis(holes, axis, 0)
        closed[by_axis[0]] = closed[by_axis[-1]] = False
    lowest, highest = _bounds(last)
    for rows in _slabs(labels, more=1):
        for axis in range(labels.ndim):
            before = (slice(None),) * axis + (slice(None, -1),)
            after = (slice(None),) * axis + (slice(1, None),)
            for hole_side, object_side in ((before, after), (after, before)):
                hole, neighbour = holes[rows][hole_side], labels[rows][object_side]
                meets = (hole > 0) & (neighbour > 0)
                _extend(lowest, highest, hole[meets], neighbour[meets])
    filling = np.where(closed & (lowest == highest), highest, 0)
    filling[0] = 0
    for rows in _slabs(labels):
        labels[rows] += filling[holes[rows]]


def _renumber(labels: Labels, *, min_size: int) -> None:
    """Number, in place, the objects of at least ``min_size`` pixels without a gap."""
    sizes = np.zeros(int(labels.max()) + 1, np.intp)
    for rows in _slabs(labels):
        sizes += np.bincount(labels[rows].ravel(), minlength=sizes.size)
    kept = (sizes >= max(1, min_size)) & (np.arange(sizes.size) > 0)
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    for rows in _slabs(labels):
        labels[rows] = numbers[labels[rows]]
