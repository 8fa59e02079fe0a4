"""Bytes of a picture to the pixels that every reader of it sees: training, vLLM in process, vLLM as a server."""

import io

import numpy as np
from PIL import Image, ImageOps

_WHITE = (255, 255, 255)


def opened_image(image: bytes) -> Image.Image:
    """The picture in RGB: turned as its EXIF entry says, its first frame, transparent parts on white.

    So does vLLM's server, whose answers would else be about other pixels. Raises OSError (UnidentifiedImageError, truncated
    file) or Image.DecompressionBombError for bytes that can't be used.
    """
    picture: Image.Image = Image.open(io.BytesIO(image))
    picture.load()
    if deep(picture):  # convert() would cut everything above 255 to white
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        picture = Image.new("RGB", clear.size, _WHITE)
        picture.paste(clear, mask=clear.getchannel("A"))
    return picture.convert("RGB")


def deep(picture: Image.Image) -> bool:
    """Whether its grey values have 16 bits."""
    return picture.mode.startswith("I;16")
