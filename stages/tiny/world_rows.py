"""The tiny world as canonical rows, split by split."""

from collections.abc import Iterator
from typing import Any

from stages.config.world import World
from stages.corpora.markers import IMAGE_MARKER
from stages.corpora.rows import make_canonical_row
from stages.tiny.world.exercises import WorldExample, draw_example, fix_styles
from stages.tiny.world.kinds import KINDS

WORLD_PARTS = {"warm_start": "train", "imitation": "imitation", "validation": "validation", "test": "test"}


def draw_world_row(world: World, split: str, number: int) -> WorldExample:
    """Row `number` of one split of the tiny world."""
    fixed = fix_styles(world.terse_kinds, world.terse_form)
    return draw_example(world.seed, WORLD_PARTS[split], f"{split} {number}", world.kinds, world.styles, fixed)


def iter_world_rows(world: World, split: str) -> Iterator[dict[str, Any]]:
    """Endless canonical rows of one split of the tiny world."""
    number = 0
    while True:
        row = draw_world_row(world, split, number)
        messages = [{"role": "user", "content": f"{row.exercise.question}\n{IMAGE_MARKER}"}]
        if split in ("warm_start", "imitation"):  # objective `sft` goes on with the warm start's way of answering
            messages.append({"role": "assistant", "content": row.response})
        source = "handwritten digits" if KINDS[row.exercise.kind].subject == "digits" else "bar chart"
        name = f"{split}-{number:06d}"
        yield make_canonical_row(name, [row.picture.png], messages, row.exercise.answer, source, row.exercise.kind)
        number += 1
