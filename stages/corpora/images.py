"""From the bytes of an image file to the picture that every model sees, engines and training alike.

There is one way of decoding here and no other: where an engine turned a photo upright and training did not, the student
would be trained on answers about other pictures than its own.
"""

import io

from PIL import ExifTags, Image, ImageOps

MOST_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs; it warns above, and refuses twice as many
LARGEST_RATIO = 200  # longer side by shorter; Qwen2.5-VL's processor refuses more
_QUARTER_TURNS = (5, 6, 7, 8)  # orientations in EXIF data that exchange width and height
_STILL = ("MPO",)  # a photo with further pictures in it (depth, preview): the first one is the photo


class UnreadableImage(OSError):
    """The bytes are no image that a model can be shown; the message says why."""


def open_image(image: bytes, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """The picture in RGB, 8 bits a channel, upright.

    The orientation in its EXIF data is applied; 16-bit greys are scaled, not clipped; transparent places are white;
    CMYK and palettes are converted; colour profiles are ignored, as the models' own processors do. Raises
    UnreadableImage for what is no image, cut short, animated, of pixels without a range (32 bits), of more than
    `max_pixels`, or too long for its width.
    """
    if not image:
        raise UnreadableImage("unreadable image: cannot identify a picture in 0 bytes")
    try:
        with Image.open(io.BytesIO(image)) as opened:
            _refuse(opened, max_pixels)
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            return _convert_to_rgb(upright)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders of some 40 formats raise a dozen kinds of error over broken files
        raise UnreadableImage(f"unreadable image: {type(error).__name__}: {' '.join(str(error).split())}") from error


def read_upright_size(image: bytes) -> tuple[int, int]:
    """Width and height of the picture that `open_image` gives, read from the header alone."""
    with Image.open(io.BytesIO(image)) as opened:
        width, height = opened.size
        lying = opened.getexif().get(ExifTags.Base.Orientation, 1) in _QUARTER_TURNS
        return (height, width) if lying else (width, height)


def make_portable(image: bytes) -> bytes:
    """Bytes that any decoder shows as `open_image` does, for engines that decode by themselves.

    The file as it came where there is nothing to be done differently, else the decoded picture as PNG.
    """
    with Image.open(io.BytesIO(image)) as opened:
        upright = opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if (
            upright
            and opened.mode in ("RGB", "L")
            and not opened.has_transparency_data
            and opened.format in ("PNG", "JPEG")
        ):
            return image
    buffer = io.BytesIO()
    open_image(image).save(buffer, "PNG")
    return buffer.getvalue()


def is_deep(picture: Image.Image) -> bool:
    """Whether its grey values have 16 bits."""
    return picture.mode.startswith("I;16")


def _refuse(opened: Image.Image, max_pixels: int) -> None:
    """Looks at the header alone: nothing is decoded before its size is known."""
    width, height = opened.size
    if width * height > max_pixels:
        raise UnreadableImage(f"image of {width} x {height} = {width * height:,} pixels, more than {max_pixels:,}")
    if max(width, height) > LARGEST_RATIO * min(width, height):
        raise UnreadableImage(
            f"image of {width} x {height} pixels: one side is more than {LARGEST_RATIO} times the other"
        )
    frames = getattr(opened, "n_frames", 1)
    if frames > 1 and opened.format not in _STILL:
        raise UnreadableImage(f"image of {frames} frames; a model sees one: save the frame that the question is about")
    if opened.mode in ("I", "F"):
        raise UnreadableImage(
            f"image with 32 bits a pixel (mode {opened.mode}) has no known range; save it as PNG with 8 or 16"
        )


def _convert_to_rgb(picture: Image.Image) -> Image.Image:
    if is_deep(picture):
        import numpy as np

        return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        white = Image.new("RGBA", seen.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, seen).convert("RGB")
    return picture.convert("RGB")
