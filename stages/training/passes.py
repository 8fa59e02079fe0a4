"""Equalizes passes over ranks: all ranks run the same number of passes through the same modules, else they deadlock.

ZeRO 2 and 3 communicate inside forward and backward passes (trap T23). A rank with fewer packs than another therefore
runs passes on padding groups without loss, and if the vision tower runs on one rank, it runs on all ranks.
"""

import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from PIL import Image

from stages.corpora.markers import IMAGE_MARKER
from stages.groups.pack import Group, Pack, make_pack, make_packs
from stages.training.ranks import get_ranks
from stages.vlm.reader import Prompt, Reader

BLANK_PIXELS = 56  # side length of the blank image in padding groups
CHARACTERS_PER_TOKEN = 4


class PaddingGroups:
    """Groups without loss: a prompt, with or without an image, and one token that is not predicted."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @functools.cached_property
    def text(self) -> Group:
        """Padding group without an image."""
        return _make_unscored_group(
            self._reader.make_text_prompt(self._reader.chat.encode_prompt([{"role": "user", "content": "."}], 0))
        )

    @functools.cached_property
    def picture(self) -> Group:
        """Padding group with an image."""
        return _make_unscored_group(
            self._reader.make_prompt([{"role": "user", "content": IMAGE_MARKER}], [_make_blank_image()])
        )


def balance_packs(
    groups: Sequence[Group], tokens_per_pack: int, padding: PaddingGroups | None = None, tower: bool = False
) -> Iterator[Pack]:
    """Yields packs of this rank's groups, padded until all ranks have the same number; `make_packs` for one process.

    `tower`: the vision tower is trained or sharded, so it must run. With several ranks, every pack then has an image: a
    gradient that is missing in the first pass of a step is added to that of the previous step by ZeRO-3 (DeepSpeed
    0.19.8). With one process, at least one pack per step has an image, so that the tower's weights have a gradient as
    they do on several ranks. Padding groups add nothing to `targets`, `last` and `groups`.

    Raises ValueError when packs need padding and `padding` is None.
    """
    here = get_ranks()
    if here.count == 1 and not tower:
        yield from make_packs(groups, tokens_per_pack)
        return
    made = list(make_packs(groups, tokens_per_pack))
    if padding is None:
        raise ValueError("padding is required to equalize passes over ranks")
    (passes,) = here.max(len(made))
    seen = here.count == 1 and any(pack.pixels is not None for pack in made)
    for pack in made:
        if tower and not seen and pack.pixels is None:
            yield _add_padding([groups[number] for number in pack.groups], pack.groups, padding.picture)
            seen = here.count == 1
        else:
            yield pack
    for _ in range(passes - len(made)):
        yield _add_padding([], range(0), padding.picture if tower else padding.text)


def _add_padding(groups: list[Group], numbers: range, padding: Group) -> Pack:
    pack = make_pack([*groups, padding], range(len(groups) + 1))
    return replace(pack, last=pack.last[:-1], groups=numbers)


def estimate_prompt_cost(
    reader: Reader, messages: Sequence[Mapping[str, str]], images: Sequence[bytes], response: str = ""
) -> float:
    """Estimates the tokens of prompt and response from text length and image size, without decoding images."""
    text = len(response) + sum(len(message["content"]) for message in messages)
    return text / CHARACTERS_PER_TOKEN + reader.count_image_tokens(images)


def _make_unscored_group(prompt: Prompt) -> Group:
    return Group(prompt, ((int(prompt.ids[-1]),),), (frozenset({0}),))


def _make_blank_image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (BLANK_PIXELS, BLANK_PIXELS), (255, 255, 255)).save(buffer, "PNG")
    return buffer.getvalue()
