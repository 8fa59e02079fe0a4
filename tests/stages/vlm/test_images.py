"""What a picture shows, whatever its file says about turning, transparency and depth."""

import io

import numpy as np
import pytest
from PIL import Image

from stages.vlm import opened_image


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_plain_pixels_stay_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(opened_image(encoded(Image.fromarray(pixels)))), pixels)


def test_a_photo_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held at a quarter turn
    assert opened_image(encoded(Image.new("RGB", (9, 6)), "JPEG", exif=exif)).size == (6, 9)


def test_what_is_transparent_is_white() -> None:
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (255, 0, 0, 255))
    assert np.asarray(opened_image(encoded(half))).tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_sixteen_bits_become_eight_and_nothing_is_cut_to_white() -> None:
    deep = np.array([[0, 256, 0x8000, 0xFFFF]], dtype=np.uint16)
    assert np.asarray(opened_image(encoded(Image.fromarray(deep))))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("broken", [b"", b"GIF", encoded(Image.effect_noise((64, 64), 90))[:500]], ids=["empty", "stump", "cut"])
def test_bytes_that_are_no_whole_picture_are_refused(broken: bytes) -> None:
    with pytest.raises(OSError, match=r"cannot identify|truncated"):
        opened_image(broken)
