"""The tiny world: pictures that two CPU cores can learn to read.

Two kinds of picture, 84 x 84 pixels each, so that Qwen2.5-VL (patch 14, merge 2) and InternVL (patch 14, pixel shuffle
0.5) both see 3 x 3 image tokens: a **sheet** of six handwritten digits in two lines of three (real ones, the 8 x 8
scans that come with scikit-learn), and a **chart** of six bars from 1 to 9. Every scan and every row of bar heights
belongs to exactly one part (`train`, `imitation`, `validation`, `test`): no picture of one part is made of the material
of another.
"""

import functools
import hashlib
import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from stages.job.seeds import derive_seed

PARTS = {"train": 0.55, "imitation": 0.15, "validation": 0.10, "test": 0.20}
VALUES = 6  # digits on a sheet, bars in a chart
CELL = 28  # pixels; one image token of either family
SIDE = 3 * CELL
SCAN = 24  # pixels of a digit, in the middle of its cell
_INK, _PAPER = 20, 245
INK_FREE = 185  # darkest tint of the paper
BAR_COLOURS = ((47, 93, 138), (178, 70, 55), (64, 124, 83), (140, 100, 40))


@dataclass(frozen=True)
class Picture:
    """A picture and what is on it."""

    subject: str  # "digits" or "bars"
    values: tuple[int, ...]
    image: Image.Image

    @property
    def png(self) -> bytes:
        """The picture as a file."""
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG")
        return buffer.getvalue()


def _assign_part(name: str) -> str:
    """The part that owns a piece of source material; a function of its name alone, so it never depends on a seed."""
    position = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    edge = 0.0
    for part, share in PARTS.items():
        edge += share
        if position < edge:
            return part
    return "test"


@functools.cache
def _load_scans() -> dict[str, dict[int, list[np.ndarray]]]:
    """part -> digit -> scans of it, enlarged to 24 x 24 uint8 with 0 for paper and 255 for ink."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans: dict[str, dict[int, list[np.ndarray]]] = {part: {digit: [] for digit in range(10)} for part in PARTS}
    for index, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        scan = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
        enlarged = np.asarray(scan.resize((SCAN, SCAN), Image.Resampling.BICUBIC))
        scans[_assign_part(f"scan {index}")][int(digit)].append(enlarged)
    return scans


@functools.cache
def _make_paper() -> Image.Image:
    """Paper that grows lighter in red to the right and in blue downwards.

    The vision tower of Qwen2.5-VL knows only where patches lie to each other; the tint tells it where on the page it
    is.
    """
    ramp = np.linspace(INK_FREE, 255, SIDE).round().astype(np.uint8)
    page = np.full((SIDE, SIDE, 3), _PAPER, dtype=np.uint8)
    page[:, :, 0], page[:, :, 2] = ramp[None, :], ramp[:, None]
    return Image.fromarray(page)


def draw_sheet(part: str, choose: random.Random) -> Picture:
    """Six random digits of `part` in two lines of three; the third line stays empty."""
    values = tuple(choose.randrange(10) for _ in range(VALUES))
    scans, ink = _load_scans()[part], np.zeros((SIDE, SIDE), np.uint8)
    for place, digit in enumerate(values):
        left, top = (at * CELL + (CELL - SCAN) // 2 for at in (place % 3, place // 3))
        ink[top : top + SCAN, left : left + SCAN] = choose.choice(scans[digit])
    sheet = _make_paper().copy()
    sheet.paste((_INK,) * 3, mask=Image.fromarray(ink))
    return Picture("digits", values, sheet)


def draw_chart(part: str, choose: random.Random) -> Picture:
    """Six bars of height 1 to 9 whose row of heights belongs to `part`."""
    while True:
        values = tuple(choose.randint(1, 9) for _ in range(VALUES))
        if _assign_part(f"bars {values}") == part:
            break
    chart = _make_paper().copy()
    draw = ImageDraw.Draw(chart)
    for line in range(0, 9, 3):  # faint lines at heights 3, 6 and 9
        draw.line((0, 2 + line * 9, SIDE, 2 + line * 9), fill=(170, 170, 170))
    colour = choose.choice(BAR_COLOURS)
    for place, value in enumerate(values):
        left = place * 14 + 2
        draw.rectangle((left, SIDE - 1 - value * 9, left + 9, SIDE - 1), fill=colour)
    return Picture("bars", values, chart)


def draw_picture(subject: str, part: str, *seed: int | str) -> Picture:
    """The picture that `seed` stands for; the same one every time."""
    choose = random.Random(derive_seed("picture", subject, part, *seed))
    return draw_sheet(part, choose) if subject == "digits" else draw_chart(part, choose)
