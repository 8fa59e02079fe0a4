"""Entries of `ril.rewards`: the two rewards of the paper, ready functions, functions of the user, and rubrics."""

import ast
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.config.block import Block
from stages.config.paths import check_path
from stages.config.regular import explain_os_error, read_regular
from stages.config.switch import Choices

OF_PAPER = ("similarity", "answer")
READY = ("choice", "numeric", "box_iou", "length", "format", "math_verify")  # in stages/reward_functions/ready.py
RUBRIC = "rubric"  # the judge decides, without a reference
FUNCTION_CODE = "stages/reward_functions/ready.py"  # what DVC watches when no function is the user's
_FUNCTION = re.compile(r"(?P<file>[^:]+\.py)(?::(?P<function>[A-Za-z_]\w*))?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
MOST_BYTES = 2**20  # of a user's file
Gate = Literal["none", "when_correct"]
Argument = str | Annotated[int, Field(ge=-(2**53), le=2**53)] | Annotated[float, Field(ge=-1e308, le=1e308)] | bool


class Reward(Block):
    """One reward: `similarity` or `answer` of the paper, a ready function, FILE.py:FUNCTION, or a rubric."""

    use: str = Field(
        description=f"`similarity`, `answer`, a ready function ({', '.join(READY)}), FILE.py:FUNCTION (without "
        "FUNCTION it is `check`), or `rubric`: 1 if the judge finds that the answer meets a rubric."
    )
    name: str | None = Field(None, description="Name of its curve; default: the name of the function.")
    weight: float = Field(1.0, ge=-1000, le=1000, description="Factor of this reward in the sum of all rewards.")
    gate: Gate = Field("none", description="`when_correct` counts it for correct answers only; it is 0 for others.")
    arguments: dict[str, Argument] = Field({}, description="Further arguments of the function.")
    rubric: str | None = Field(
        None, min_length=1, max_length=4000, description="With `use: rubric`: what an answer has to meet, in words."
    )
    images: bool = Field(
        False,
        description="With `use: rubric`: the judge sees the images of the question, which takes a judge that can.",
    )
    seconds: float = Field(10.0, gt=0, le=3600, description="Time limit of one call; one that takes longer has failed.")
    max_failed_share: float = Field(
        0.2, ge=0, le=1, description="Maximum share of failed calls of a step; the stage fails above it."
    )

    @property
    def file(self) -> str | None:
        """The user's file; None for a reward of the paper, a ready function and a rubric."""
        return None if self.use in (*OF_PAPER, *READY, RUBRIC) else self.use.partition(":")[0]

    @property
    def function(self) -> str:
        """The name of the function."""
        return self.use if self.file is None else self.use.partition(":")[2] or "check"

    @property
    def title(self) -> str:
        """The name of its curve."""
        return self.name or self.function

    @model_validator(mode="after")
    def _check_use(self) -> Self:
        if self.use in OF_PAPER:
            given = self.model_fields_set - {"use", "weight", "gate"}
            if given:
                raise ValueError(f"{self.use!r} is a reward of the paper and has no {min(given)}; remove it")
            if self.weight < 0:
                raise ValueError(f"weight of {self.use!r} is {self.weight:g}; it must be at least 0")
            if self.use == "answer" and self.gate != "none":
                raise ValueError("'answer' is what `when_correct` asks for; remove gate")
        elif self.use == RUBRIC:
            if self.rubric is None or not self.rubric.strip():
                raise ValueError("'rubric' has no text; write rubric: \"what an answer has to meet\"")
            if given := self.model_fields_set & {"arguments", "seconds"}:
                raise ValueError(f"'rubric' asks the judge and has no {min(given)}; remove it")
        elif given := self.model_fields_set & {"rubric", "images"}:
            raise ValueError(f"{min(given)} is for `use: rubric`, and use is {self.use[:80]!r}; remove it")
        elif self.use not in READY:
            if not _FUNCTION.fullmatch(self.use):
                raise ValueError(
                    f"use is {self.use[:80]!r}; take {', '.join((*OF_PAPER, *READY, RUBRIC))}, or FILE.py:FUNCTION "
                    "such as rewards/unit.py:check"
                )
            check_path(self.use.partition(":")[0])
        if not _NAME.fullmatch(self.title):
            raise ValueError(f"name {self.title[:80]!r} must be 1 to 64 of a-z, A-Z, 0-9 and _, the first no digit")
        return self


def find_reward(rewards: tuple[Reward, ...], use: str) -> Reward | None:
    """Returns the entry that is `use`, None if the list has none."""
    return next((one for one in rewards if one.use == use), None)


def apply_listed_weights(choices: Choices) -> Choices:
    """Returns the choices with the weights of `similarity` and `answer` that `ril.rewards` lists, and without these
    entries.
    """
    values = dict(choices.values)
    listed: tuple[Reward, ...] = values["ril.rewards"]
    for use in OF_PAPER:
        if entry := find_reward(listed, use):
            values[f"ril.{use}_weight"] = entry.weight
            if "gate" in entry.model_fields_set:
                values[f"ril.{use}_gate"] = entry.gate
    values["ril.rewards"] = tuple(one for one in listed if one.use not in OF_PAPER)
    return replace(choices, values=values)


def find_wrong_entry(rewards: tuple[Reward, ...], written: Collection[str]) -> str | None:
    """Returns the line about an entry that conflicts with another one or with a key of `ril` that is written."""
    for use, names in (("similarity", ("weight", "gate")), ("answer", ("weight",))):
        if sum(one.use == use for one in rewards) > 1:
            return f"rewards has {use!r} more than once; remove one"
        if entry := find_reward(rewards, use):
            given = [name for name in names if name == "weight" or name in entry.model_fields_set]
            if twice := next((key for name in given if (key := f"{use}_{name}") in written), None):
                return f"{twice} is set, and rewards has an entry {use!r} too; remove one"
    titles = [one.title for one in rewards]
    if double := next((title for title in titles if titles.count(title) > 1), None):
        return f"rewards has two entries of the name {double!r}, but each has a curve; give one a name"
    return None


def explain_missing_function(root: Path, reward: Reward) -> str | None:
    """Returns what is wrong with the user's file of an entry: not there, no Python, without the function; else None.

    The file is read and not run.
    """
    if reward.file is None:
        return None
    try:
        tree = ast.parse(read_regular(root / reward.file, MOST_BYTES))
    except OSError as error:
        return f"{reward.file}: {explain_os_error(error)}; write the function there, or correct the path"
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        return f"{reward.file}{line}: {getattr(error, 'msg', error)}; correct it"
    if reward.function not in {name for node in tree.body for name in _list_bound(node)}:
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        return (
            f"{reward.file} has no function {reward.function!r}; it has {', '.join(functions) or 'none'}: write "
            "FILE.py:FUNCTION"
        )
    return None


def _list_bound(node: ast.stmt) -> list[str]:
    """Returns the names that a statement of a module may bind to a function."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [one.asname or one.name for one in names]
        case ast.Assign(targets=targets):
            return [one.id for one in targets if isinstance(one, ast.Name)]
        case _:
            return []
