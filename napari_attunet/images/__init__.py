"""Files <-> arrays: TIFF, PNG and OME-Zarr, with their axes and pixel sizes.

What a file says about its pixels goes with them, in and out: which axis is what, how
large a pixel is and where the first one lies. Large TIFF and all OME-Zarr arrays stay
on disk and are read region by region.
"""

from napari_attunet.images.names import (
    FORMATS,
    find_images,
    image_format,
    image_stem,
    image_suffix,
    is_zarr,
    pair_files,
)
from napari_attunet.images.reading import ImageFile, read_image, read_labels
from napari_attunet.images.writing import (
    write_attention,
    write_image,
    write_labels,
    write_probabilities,
    write_tables,
)

__all__ = [
    "FORMATS",
    "ImageFile",
    "find_images",
    "image_format",
    "image_stem",
    "image_suffix",
    "is_zarr",
    "pair_files",
    "read_image",
    "read_labels",
    "write_attention",
    "write_image",
    "write_labels",
    "write_probabilities",
    "write_tables",
]
