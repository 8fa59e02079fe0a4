"""Bytes of a picture to the pixels that every reader of it sees: training, vLLM in process, vLLM as a server."""

import io

import numpy as np
from PIL import Image, ImageOps

_WHITE = (255, 255, 255)


def opened_image(image: bytes) -> Image.Image:
    """The picture in RGB: turned as its EXIF entry says, its first frame, transparent parts on white.

    So does vLLM's server, whose answers would else be about other pixels. Raises OSError for bytes that can't be used:
    no picture, a cut or damaged one, one of more than 178 million pixels.
    """
    try:
        picture: Image.Image = Image.open(io.BytesIO(image))
        picture.load()
    except (SyntaxError, EOFError, Image.DecompressionBombError) as error:  # Pillow's words for damaged and for too large
        raise OSError(f"cannot read the image: {error}") from error
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
