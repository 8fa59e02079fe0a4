"""Passes of several ranks: as many on each, and the same modules in each, or ranks wait for each other for ever.

ZeRO 2 and 3 communicate inside forward and backward passes (trap T23). A rank with fewer packs than another therefore
runs passes over a group that carries no loss, and where a vision tower runs on one rank it runs on all of them.
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

BLANK_PIXELS = 56  # sides of the picture that a tower without one gets
CHARACTERS_PER_TOKEN = 4
PIXELS_PER_TOKEN = 28 * 28  # Qwen2.5-VL's; InternVL3 has 256 tokens for 448 x 448, which is the same


class PaddingGroups:
    """Groups that carry no loss: a prompt, with or without a picture, and one token that is never predicted."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @functools.cached_property
    def text(self) -> Group:
        """Without a picture."""
        return _make_unscored_group(
            self._reader.make_text_prompt(self._reader.chat.encode_prompt([{"role": "user", "content": "."}], 0))
        )

    @functools.cached_property
    def picture(self) -> Group:
        """With one."""
        return _make_unscored_group(
            self._reader.make_prompt([{"role": "user", "content": IMAGE_MARKER}], [_make_blank_image()])
        )


def balance_packs(
    groups: Sequence[Group], tokens_per_pack: int, padding: PaddingGroups | None = None, tower: bool = False
) -> Iterator[Pack]:
    """Packs of this rank's groups, filled up with idle ones until every rank has as many; with one process,
    `make_packs`.

    `tower` says that a vision tower must run in them: it is trained, or sharded. Then every pack has a picture on
    several ranks: ZeRO-3 adds a gradient that is not there in a step's first pass to that of the step before (DeepSpeed
    0.19.8). A step of one process has at least one, so that the tower's weights have a gradient, as they have on
    several ranks. An idle group adds nothing to `targets` and `last`, and stands in `groups` of no pack.
    """
    here = get_ranks()
    if here.count == 1 and not tower:
        yield from make_packs(groups, tokens_per_pack)
        return
    made = list(make_packs(groups, tokens_per_pack))
    if padding is None:
        raise ValueError("passes that have to be filled up need idle groups")
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


def estimate_prompt_cost(messages: Sequence[Mapping[str, str]], images: Sequence[bytes], response: str = "") -> float:
    """About how many tokens prompt and response have, without decoding an image: what ranks share by must itself cost
    little.
    """
    text = len(response) + sum(len(message["content"]) for message in messages)
    return text / CHARACTERS_PER_TOKEN + sum(_read_area(image) for image in images) / PIXELS_PER_TOKEN


def _read_area(image: bytes) -> int:
    with Image.open(io.BytesIO(image)) as header:
        return header.width * header.height


def _make_unscored_group(prompt: Prompt) -> Group:
    return Group(prompt, ((int(prompt.ids[-1]),),), (frozenset({0}),))


def _make_blank_image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (BLANK_PIXELS, BLANK_PIXELS), (255, 255, 255)).save(buffer, "PNG")
    return buffer.getvalue()
