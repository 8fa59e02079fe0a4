"""Decodes image files into the picture that every model sees, in engines and in training.

All decoding goes through this module. If an engine rotated a photo and training did not, the student would be trained
on answers about a different picture.
"""

import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from stages.job.cores import count_cores

MOST_PIXELS = 89_478_485  # Pillow's limit against decompression bombs; it warns above it, and raises at twice as many
REDUCED_SIDE = 144  # pixels that a reduced JPEG has at least, if it had them; prints of pictures need as many
LARGEST_RATIO = 200  # longer side / shorter side; the processor of Qwen2.5-VL raises above it
# Pillow reads 30 more; some of their decoders start other programs (EPS) or are hardly ever used
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_ORIENTATIONS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # keywords of text chunks that can hold one
_STILL = ("MPO",)  # a photo with embedded pictures (depth, preview); the first frame is the photo
AnyImage = bytes | Image.Image  # a file, or a picture as `open_image` returns it


class UnreadableImage(OSError):
    """Bytes that are not an image a model can be shown; the message gives the reason."""


class ImageHeader(NamedTuple):
    """What the header of an image file says."""

    width: int  # of the upright picture
    height: int
    format: str  # Pillow's name, such as "JPEG"


def open_image(image: bytes, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """Returns the picture in RGB, 8 bits per channel, upright.

    Applies the EXIF orientation; scales 16-bit greyscale instead of clipping it; renders transparency on white;
    converts CMYK and palettes; ignores colour profiles, as the models' own processors do. Raises UnreadableImage for
    bytes that are not an image, and for images that are truncated, animated, of 32-bit pixels without a range, of more
    than `max_pixels`, or of an extreme aspect ratio.
    """
    return _open(image, max_pixels, small=False)


def open_reduced(image: bytes, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """Returns the picture of `open_image`, reduced if it is a JPEG; raises UnreadableImage whenever `open_image` does.

    All of the file is decoded, but a JPEG at down to an eighth of its width and height: this takes a third of the time.
    """
    return _open(image, max_pixels, small=True)


def _open(image: bytes, max_pixels: int, small: bool) -> Image.Image:
    if not image:
        raise UnreadableImage("unreadable image: cannot identify a picture in 0 bytes")
    try:
        with Image.open(io.BytesIO(image), formats=PICTURE_FORMATS) as opened:
            _refuse(opened, max_pixels)
            if small and opened.format == "JPEG":
                opened.draft(None, (max(REDUCED_SIDE, opened.width // 8), max(REDUCED_SIDE, opened.height // 8)))
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            return _convert_to_rgb(upright)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"unreadable image: not one of the formats {', '.join(PICTURE_FORMATS)}") from error
    except Exception as error:  # decoders of about 40 formats raise a dozen types of errors on broken files
        raise UnreadableImage(f"unreadable image: {type(error).__name__}: {' '.join(str(error).split())}") from error


def open_images(images: Sequence[AnyImage]) -> list[Image.Image]:
    """Returns the pictures of `open_image` in order, decoded on all cores: decoders release the interpreter's lock."""
    workers = min(count_cores(), sum(not isinstance(image, Image.Image) for image in images))
    if workers < 2:
        return [_open_any(image) for image in images]
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads:
        return list(threads.map(_open_any, images))


def _open_any(image: AnyImage) -> Image.Image:
    return image if isinstance(image, Image.Image) else open_image(image)


def read_upright_size(image: bytes) -> tuple[int, int]:
    """Returns width and height of the picture that `open_image` returns; reads the header only."""
    return read_header(image)[:2]


def read_header(image: bytes) -> ImageHeader:
    """Returns size and format of an image that `open_image` opens, without decoding it."""
    with Image.open(io.BytesIO(image)) as opened:
        width, height = opened.size
        lying = _may_be_turned(opened, image) and opened.getexif().get(ExifTags.Base.Orientation, 1) in _QUARTER_TURNS
        return ImageHeader(*((height, width) if lying else (width, height)), opened.format or "")


def _may_be_turned(opened: Image.Image, image: bytes) -> bool:
    """False for a PNG file without a chunk that can hold an orientation: Pillow decodes all of it to look for one."""
    if opened.format != "PNG":
        return True
    start = 8
    while start + 8 <= len(image):
        length, kind = int.from_bytes(image[start : start + 4], "big"), image[start + 4 : start + 8]
        if kind == b"eXIf" or (kind in _PNG_TEXTS and image.startswith(_PNG_ORIENTATIONS, start + 8)):
            return True
        start += 12 + length
    return False


def make_portable(image: bytes, max_pixels: int | None = None) -> bytes:
    """Returns bytes that any decoder decodes like `open_image`, for engines with their own decoder.

    Returns the file unchanged where decoders agree, else the decoded picture as PNG. A picture of more than
    `max_pixels` is scaled down to that area, with its ratio of sides.
    """
    with Image.open(io.BytesIO(image)) as opened:
        upright = opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
        fits = max_pixels is None or opened.width * opened.height <= max_pixels
        if (
            fits
            and upright
            and opened.mode in ("RGB", "L")
            and not opened.has_transparency_data
            and opened.format in ("PNG", "JPEG")
        ):
            return image
    buffer = io.BytesIO()
    picture = open_image(image)
    if max_pixels is not None and not fits:
        picture = picture.resize(_scale_down(*picture.size, max_pixels), Image.Resampling.BICUBIC)
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _scale_down(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Returns sides of nearly the same ratio with a product of at most `max_pixels`."""
    factor = math.sqrt(max_pixels / (width * height))
    short = max(1, math.floor(min(width, height) * factor))
    long = min(max(1, math.floor(max(width, height) * factor)), max_pixels // short)
    return (long, short) if width >= height else (short, long)


def is_deep(picture: Image.Image) -> bool:
    """Returns whether the grey values have 16 bits."""
    return picture.mode.startswith("I;16")


def _refuse(opened: Image.Image, max_pixels: int) -> None:
    """Raises UnreadableImage from the header only: nothing is decoded before the size is known."""
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
