"""The block `world`: the tiny world."""

import math
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from stages.config.block import Block
from stages.config.paths import Location

QUESTIONS_FOLDER: Final = "data/questions"  # values of world.data
BUILT_FROM_WORLD: Final = "stages/model.py"
STYLE_NAMES = ("terse", "steps", "arrows")
KIND_NAMES = ("sum", "alternating", "largest", "odd", "total", "rises")


def _check_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    for kind in kinds:
        if kind not in KIND_NAMES:
            raise ValueError(f"has {kind!r}; known kinds are {', '.join(KIND_NAMES)}")
    return kinds


def _check_styles(styles: dict[str, float]) -> dict[str, float]:
    for style in styles:
        if style not in STYLE_NAMES:
            raise ValueError(f"has {style!r}; known styles are {', '.join(STYLE_NAMES)}")
    if styles and not math.isclose(total := sum(styles.values()), 1, abs_tol=0.02):
        raise ValueError(f"adds up to {total:g}; shares add up to 1: change one")
    return styles


Kinds = Annotated[tuple[str, ...], AfterValidator(_check_kinds)]
Styles = Annotated[dict[str, Annotated[float, Field(gt=0, le=1)]], AfterValidator(_check_styles)]


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
    styles: Styles = Field(
        {"steps": 0.5, "arrows": 0.5},
        min_length=1,
        description="Share of each answer style in the warm-start targets of the other kinds.",
    )
    terse_form: Literal["bare", "padded"] = Field(
        "bare",
        description="How answers of terse_kinds are written: the bare number, or padded to the length of the style "
        "`steps` by zeros in place of every value and running result, so that lengths tell nothing.",
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
