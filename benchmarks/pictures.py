"""Make the pictures of docs/attention.md: what mechanisms see in one real image.

The image is the haematoxylin of scikit-image's stained tissue. The networks are those
of mechanisms.py, small and briefly trained, and one bundled model.

    python benchmarks/pictures.py --work DIR

DIR is the --work of that benchmark (nuclei, seed 0).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pyqtgraph

from napari_attunet import AttentionMap, Inspection, Segmenter, load_model
from napari_attunet.attention import frame_corners
from napari_attunet.samples import immunohistochemistry

#: The part of the image that is shown, and the place that is asked where it looks.
CORNER, SIZE, PLACE = (112, 192), 192, (107, 66)

#: Pixels of white between pictures.
GAP = 6


def coloured(values: np.ndarray, colours: str = "inferno") -> np.ndarray:
    """Return RGB of values between 0 and 1."""
    table = pyqtgraph.colormap.get(colours).getLookupTable(0, 1, 256)
    return table[np.round(np.clip(values, 0, 1) * 255).astype(int)][..., :3]


def on_pixels(found: AttentionMap) -> np.ndarray:
    """Return a map with a value for each pixel of the part."""
    picture = found.values
    for axis, factor in enumerate(found.scale):
        picture = picture.repeat(factor, axis)
        first = round((found.scale[axis] - 1) / 2 - found.translate[axis])
        picture = picture.take(np.arange(first, first + SIZE), axis)
    return picture


def outlined(grey: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the image with the rims of its objects."""
    picture = coloured(grey, "CET-L1")
    rim = np.zeros(labels.shape, bool)
    rim[1:] |= labels[1:] != labels[:-1]
    rim[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    picture[rim] = (255, 225, 77)
    return picture


def barred(weights: np.ndarray) -> np.ndarray:
    """Return the sorted weights of channels as bars."""
    picture = np.full((SIZE, SIZE, 3), 255, np.uint8)
    rows = np.linspace(0, SIZE, len(weights) + 1).round().astype(int)
    for weight, top, end in zip(-np.sort(-weights), rows[:-1], rows[1:], strict=True):
        width = round(float(weight) * SIZE)
        picture[top : max(top + 1, end - (end - top > 3)), :width] = (47, 155, 230)
    return picture


def framed(grey: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Return the whole image, small, with the frame that a transformer sampled."""
    low = np.minimum(corners.min(0), -20) - 20
    high = np.maximum(corners.max(0), np.array(grey.shape) + 20) + 20
    step = float((high - low).max()) / SIZE
    rows, columns = (low[:, None] + step * (np.arange(SIZE) + 0.5)).round().astype(int)
    inside = (rows >= 0)[:, None] & (rows < grey.shape[0])[:, None]
    inside = inside & (columns >= 0) & (columns < grey.shape[1])
    picture = np.full((SIZE, SIZE, 3), 90, np.uint8)
    shown = grey[np.clip(rows, 0, grey.shape[0] - 1)]
    shown = shown[:, np.clip(columns, 0, grey.shape[1] - 1)]
    picture[inside] = coloured(shown, "CET-L1")[inside]
    for first, last in zip(corners, np.roll(corners, -1, 0), strict=True):
        line = np.linspace(first, last, 4 * SIZE)
        at = np.floor((line - low) / step).astype(int).clip(1, SIZE - 1)
        for shift in (0, 1):
            picture[at[:, 0] - shift, at[:, 1]] = (230, 159, 0)
            picture[at[:, 0], at[:, 1] - shift] = (230, 159, 0)
    return picture


def write(path: Path, pictures: list[np.ndarray]) -> None:
    """Write pictures side by side."""
    white = np.full((SIZE, GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, white)][:-1]
    imageio.imwrite(path, np.concatenate(parts, 1).astype(np.uint8))
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images"
    )
    args = parser.parse_args()
    image = immunohistochemistry()[1]
    region = [slice(c, c + SIZE) for c in CORNER]
    low, high = np.percentile(image, (1, 99.8))
    whole = np.clip((image - low) / (high - low), 0, 1)
    grey = whole[tuple(region)]
    models = {"bundled": load_model("nuclei-fluorescence")}
    names = ("additive", "multiplicative", "grid", "cbam", "se", "self", "transformer")
    for name in names:
        models[name] = load_model(args.work / f"nuclei-{name}-0.safetensors")
    for name, model in models.items():
        inspection = Inspection(Segmenter(model), image, axes="YX", region=region)
        answer = inspection.answer()
        pictures = [outlined(grey, answer.labels)]
        if name == "cbam":
            maps = [m for m in answer.attention if "encoder" in m.name]
        else:
            maps = list(answer.attention)
        pictures += [coloured(on_pixels(m)) for m in maps[:4]]
        if name == "se":
            pictures += [barred(t.values[0]) for t in answer.tables[:3]]
        if name == "transformer":
            table = answer.tables[0]
            corners = frame_corners(table.values[0], table.regions[0]) + CORNER
            pictures.append(framed(whole, corners))
        for mechanism in inspection.mechanisms:
            if mechanism.kind == "pairwise":
                here = inspection.look(mechanism, PLACE)
                pictures.append(coloured(on_pixels(here)))
                row, column = PLACE
                pictures[0][row - 3 : row + 4, column] = (255, 60, 60)
                pictures[0][row, column - 3 : column + 4] = (255, 60, 60)
        write(args.out / f"attention-{name}.png", pictures)


if __name__ == "__main__":
    main()
