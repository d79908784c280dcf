"""From probabilities to labels, and from labels to what a network learns.

A network that tells objects apart predicts three classes: background, the interior of
objects, and their boundary. `object_targets` draws these classes into a label image
for training; `object_labels` turns predicted ones back into numbered objects. The
boundary lies inside the objects, so that it separates those that touch, and interior
plus boundary is the whole object. The idea is that of

    Caicedo et al. 2019, "Evaluation of Deep Learning Strategies for Nucleus
    Segmentation in Fluorescence Images", https://doi.org/10.1002/cyto.a.23863
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_attunet.errors import DataError

if TYPE_CHECKING:
    from napari_attunet.spec import ObjectSettings

__all__ = ["class_labels", "object_labels", "object_targets"]

# skimage is imported where it is used: its parts take longer than a dock to open.

BACKGROUND, INTERIOR, BOUNDARY = 0, 1, 2

#: Standard deviation and reach, in pixels, of the smoothing of a distance map: without
#: it every step of a pixelated edge raises a ridge of its own.
SMOOTHING, SMOOTHING_REACH = 1.0, 4
#: Distances to the edge are told apart up to so many pixels: larger objects than that
#: have no necks worth looking for.
FARTHEST = 96
#: Rows of which distances are computed at once.
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
    if interior.size == 0:
        return np.zeros(interior.shape, np.int32)
    total = np.add(interior, boundary, dtype=np.float32)
    foreground = total >= settings.foreground_threshold
    del total
    labels = _components(foreground)
    # In `object_targets`, interiors of two objects never share a face or an edge (the
    # pixels between would have to belong to both): such neighbours are one seed.
    seeds = _components(
        foreground & (interior >= settings.seed_threshold), diagonals=True
    )
    if settings.split_depth:
        if settings.fill_holes:
            # A doubtful spot inside an object would be an edge to its distance map.
            _fill_holes(seeds)
        _part_necks(seeds, settings.split_depth)
    del foreground
    _split(labels, seeds, interior)
    del seeds
    if settings.fill_holes:
        _fill_holes(labels)
    return _renumber(labels, min_size=settings.min_size)


def object_targets(
    labels: npt.NDArray[Any], *, boundary_width: float = 2.0, fraction: float = 0.4
) -> npt.NDArray[np.uint8]:
    """Return the three classes that a network learns from a label image.

    Parameters
    ----------
    labels : ([Z,] Y, X) array of int
        One number for each object; 0 and below is background.
    boundary_width : float
        Width of the boundary in pixels. It lies inside the object, next to other
        objects and to the background, but not along the image's border.
    fraction : float
        Part of the object's inner radius that the boundary may take at most, so that
        small objects keep an interior. It is one pixel wide at least, except that the
        innermost pixels of an object always are interior.

    Returns
    -------
    classes : ([Z,] Y, X) array of uint8
        0 background, 1 interior, 2 boundary.

    Raises
    ------
    DataError
        If the labels are no whole numbers.
    """
    from skimage.segmentation import find_boundaries

    if labels.dtype.kind not in "biu":
        raise DataError(
            f"Labels must be whole numbers, one for each object, but these are "
            f"{labels.dtype}. Convert the label image to an integer type."
        )
    inside = labels > 0
    targets = inside.astype(np.uint8)  # all of it INTERIOR for now
    if not inside.any():
        return targets
    objects = np.where(inside, labels, 0)
    if objects.max() > objects.size:  # SciPy's filters compare numbers as floats
        _, objects = np.unique(objects, return_inverse=True)
        objects = objects.reshape(labels.shape) + int(inside.all())
    objects = objects.astype(np.int32)
    edge = find_boundaries(objects, mode="inner")
    if not edge.any():
        return targets
    distance = ndimage.distance_transform_edt(~edge)[inside] + 1.0
    numbers = objects[inside]
    radius = np.zeros(int(numbers.max()) + 1)
    np.maximum.at(radius, numbers, distance)
    limit = np.maximum(1.0, np.minimum(boundary_width, fraction * radius))
    is_boundary = (distance <= limit[numbers]) & (distance < radius[numbers])
    targets[inside] = np.where(is_boundary, BOUNDARY, INTERIOR)
    return targets


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
    from skimage.morphology import reconstruction
    from skimage.segmentation import watershed

    distance = _edge_distance(seeds)
    height = np.zeros(int(seeds.max(initial=0)) + 1, np.float32)
    np.maximum.at(height, seeds, distance)
    seeds[height[seeds] < depth - ROUNDING] = 0
    neighbours = np.ones((3,) * seeds.ndim, bool)
    # Most seeds have one peak and are done with; only the others are looked into.
    peaks = (ndimage.maximum_filter(distance, footprint=neighbours) <= distance) & (
        seeds > 0
    )
    peak_numbers = _components(peaks, diagonals=True)
    last = int(seeds.max(initial=0))
    lowest, highest = _extrema(seeds[peaks], peak_numbers[peaks], last)
    del peaks, peak_numbers
    boxes = ndimage.find_objects(seeds)
    for seed in np.flatnonzero(lowest < highest):
        if seed == 0:
            continue
        box = boxes[seed - 1]
        here = seeds[box] == seed
        local = np.where(here, distance[box], 0).astype(np.float64)
        domes_of = local - reconstruction(np.maximum(local - depth, 0), local)
        domes = _components(domes_of > ROUNDING, diagonals=True)
        count = int(domes.max())
        rise = ndimage.maximum(domes_of, domes, np.arange(1, count + 1))
        high = np.flatnonzero(rise >= depth - ROUNDING) + 1
        if high.size < 2:
            continue
        domes[~np.isin(domes, high)] = 0
        parts = watershed(-local, markers=domes, mask=here)
        seeds[box][here] = parts[here] + last
        last += count


def _edge_distance(seeds: Labels) -> npt.NDArray[np.float32]:
    """Return the smoothed distance of each pixel of a seed to the seed's edge.

    Computed in slabs, so that memory stays bounded. Distances are cut off at
    `FARTHEST`, which makes the slabs' result that of the whole.
    """
    distance = np.empty(seeds.shape, np.float32)
    margin = FARTHEST + SMOOTHING_REACH
    for start in range(0, len(seeds), SLAB):
        stop = min(start + SLAB, len(seeds))
        low, high = max(start - margin, 0), min(stop + margin, len(seeds))
        # The image's border is an edge like any other.
        inside = np.pad(seeds[low:high] > 0, 1)
        slab = ndimage.distance_transform_edt(inside)[(slice(1, -1),) * seeds.ndim]
        slab = np.minimum(slab, FARTHEST)
        slab = ndimage.gaussian_filter(slab, SMOOTHING, radius=SMOOTHING_REACH)
        distance[start:stop] = slab[start - low : stop - low]
    return distance


def _split(
    regions: Labels, seeds: Labels, interior: npt.NDArray[np.floating[Any]]
) -> None:
    """Divide, in place, every region that holds more than one seed."""
    from skimage.segmentation import watershed

    seeded = seeds > 0
    last_seed = int(seeds.max())
    lowest, highest = _extrema(seeds[seeded], regions[seeded], last_seed)
    astride = seeded & (lowest < highest)[seeds]  # across an edge, in two regions
    if astride.any():
        pairs = np.stack([seeds[astride], regions[astride]])
        _, number = np.unique(pairs, axis=1, return_inverse=True)
        seeds[astride] = last_seed + 1 + number.ravel()
        last_seed = int(seeds.max())
    region_of_seed = np.zeros(last_seed + 1, np.int32)
    region_of_seed[seeds[seeded]] = regions[seeded]
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


def _extrema(groups: Labels, values: Labels, last: int) -> tuple[Labels, Labels]:
    """Return the lowest and the highest value of each group from 0 to ``last``.

    Of a group without values, the lowest is above the highest, which is 0.
    """
    lowest = np.full(last + 1, np.iinfo(np.int32).max, np.int32)
    highest = np.zeros(last + 1, np.int32)
    np.minimum.at(lowest, groups, values)
    np.maximum.at(highest, groups, values)
    return lowest, highest


def _fill_holes(labels: Labels) -> None:
    """Fill, in place, background that a single object encloses.

    Background that reaches the image's border, or that touches two objects, stays.
    """
    holes = _components(labels == 0)
    last = int(holes.max())
    closed = np.ones(last + 1, bool)
    lowest = np.full(last + 1, np.iinfo(np.int32).max, np.int32)
    highest = np.zeros(last + 1, np.int32)
    for axis in range(labels.ndim):
        by_axis = np.moveaxis(holes, axis, 0)
        closed[by_axis[0]] = closed[by_axis[-1]] = False
        before = (slice(None),) * axis + (slice(None, -1),)
        after = (slice(None),) * axis + (slice(1, None),)
        for hole_side, object_side in ((before, after), (after, before)):
            hole, neighbour = holes[hole_side], labels[object_side]
            meets = (hole > 0) & (neighbour > 0)
            low, high = _extrema(hole[meets], neighbour[meets], last)
            lowest, highest = np.minimum(lowest, low), np.maximum(highest, high)
    filling = np.where(closed & (lowest == highest), highest, 0)
    filling[0] = 0
    labels += filling[holes]


def _renumber(labels: Labels, *, min_size: int) -> Labels:
    """Number the objects of at least ``min_size`` pixels from 1 without a gap."""
    sizes = np.bincount(labels.ravel())
    kept = (sizes >= max(1, min_size)) & (np.arange(sizes.size) > 0)
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    renumbered: Labels = numbers[labels]
    return renumbered
