"""Prints of pictures: what two files of the same picture have in common, whatever their size and compression."""

from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 16  # of a thumbnail, in pixels
_COLUMNS, _ROWS = 9, 8  # of the grid whose neighbours are compared
_BOX = Image.Resampling.BOX


class ImagePrint(NamedTuple):
    """What is compared of a picture."""

    bits: int  # 64: whether it becomes brighter from each cell of a grid of 9 x 8 to the next one in its row (dHash)
    thumbnail: bytes  # 16 x 16 pixels in RGB; flat pictures have equal bits


def make_print(picture: Image.Image) -> ImagePrint:
    """Returns the print of an RGB picture."""
    small = picture.resize((_COLUMNS * SIDE, _ROWS * SIDE), _BOX)  # once; both grids are whole parts of it
    grey = np.asarray(small.resize((_COLUMNS, _ROWS), _BOX).convert("L"))
    rises = np.packbits(grey[:, 1:] > grey[:, :-1])
    return ImagePrint(int.from_bytes(rises.tobytes(), "big"), small.resize((SIDE, SIDE), _BOX).tobytes())
