"""The block `world`: the tiny world."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from stages.config.block import Block
from stages.config.paths import Location

QUESTIONS_FOLDER: Final = "data/questions"  # values of world.data
BUILT_FROM_WORLD: Final = "stages/model.py"
KIND_NAMES = ("sum", "alternating", "largest", "odd", "total", "rises")


def _check_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    for kind in kinds:
        if kind not in KIND_NAMES:
            raise ValueError(f"has {kind!r}; known kinds are {', '.join(KIND_NAMES)}")
    return kinds


Kinds = Annotated[tuple[str, ...], AfterValidator(_check_kinds)]


class World(Block):
    """The tiny world: pictures of handwritten digits and drawn charts with questions that need intermediate steps."""

    seed: int = Field(
        0,
        ge=0,
        le=2**53 - 1,
        description="Another seed generates another world: other pictures, questions and tiny models.",
    )
    kinds: Kinds = Field(KIND_NAMES, min_length=1, strict=False, description="Kinds of questions to generate.")
    terse_kinds: Kinds = Field(
        (),
        strict=False,
        description="Kinds whose warm-start targets are the number only, so that SFT teaches guessing.",
    )
    code: Location = Field(
        "stages/tiny/world",
        description="Code of tiny models, tracked by DVC; `stages/model.py` if no model is built.",
    )
    builds: Location = Field(
        "stages/tiny/builds",
        description="Code that builds tiny models, tracked by DVC; `stages/model.py` if no model is built.",
    )
    data: Literal["stages/model.py", "data/questions"] = Field(
        BUILT_FROM_WORLD,
        description="What built models learn from, tracked by DVC: data/questions for the user's own questions of "
        "warm_start and imitation, stages/model.py for the tiny world.",
    )
