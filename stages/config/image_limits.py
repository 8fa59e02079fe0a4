"""Limits on the size of a model's images: keys of `models.<id>`, part of its card and of the keys of its answers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Literal, get_args

IMAGE_SHARE = Fraction(1, 2)  # of a model's context that one image takes at most, if no limit is set
SMALLEST_PIXELS = 28 * 28  # one image token of Qwen2.5-VL
MOST_PIXELS = 89_478_485  # larger images are not opened at all (Pillow's limit)
MOST_TILES = 1024


@dataclass(frozen=True)
class ImageLimits:
    """Bounds to which a model's processor scales images; None: what the checkpoint's own processor says."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    min_tiles: int | None = None  # a thumbnail of an image of several tiles comes on top
    max_tiles: int | None = None

    def list_set(self) -> dict[str, int]:
        """Returns the limits that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def fill(self, other: "ImageLimits") -> "ImageLimits":
        """Returns these limits, with those of `other` where none is set."""
        return replace(other, **self.list_set())

    def find_fault(self) -> str | None:
        """Returns why no image can meet the limits; None if one can."""
        for low, high in (("min_pixels", "max_pixels"), ("min_tiles", "max_tiles")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                return f"{low} is {least}, more than {high} ({most})"
        return None

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:,}" for name, value in self.list_set().items())


NO_LIMITS = ImageLimits()
LimitName = Literal["min_pixels", "max_pixels", "min_tiles", "max_tiles"]
LIMIT_NAMES: tuple[LimitName, ...] = get_args(LimitName)


def read_limits(values: Mapping[str, int] | None) -> ImageLimits:
    """Returns the limits that `ImageLimits.list_set` gave."""
    return ImageLimits(**(values or {}))


def count_image_room(context_tokens: int) -> int:
    """Returns the tokens that one image may take of a model's context if no limit is set."""
    return int(IMAGE_SHARE * context_tokens)
