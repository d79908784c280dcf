"""``python -m napari_attunet`` is the command ``napari-attunet``."""

import sys

from napari_attunet.cli import main

if __name__ == "__main__":
    sys.exit(main())
