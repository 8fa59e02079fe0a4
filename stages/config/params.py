"""Loads `params.yaml` and validates it once into a typed object."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from stages.config.block import Block
from stages.config.discriminator import Discriminator
from stages.config.engines import ENGINE_KINDS
from stages.config.evaluate import Evaluate, Evaluation
from stages.config.model import Model
from stages.config.objective import Objective
from stages.config.pool import Pool
from stages.config.questions import Questions
from stages.config.report import Report
from stages.config.ril import Ril
from stages.config.rollout import Rollout
from stages.config.runtime import Runtime
from stages.config.switch import find_contradiction, read_choices
from stages.config.teacher import Teacher
from stages.config.verdict import Verdict
from stages.config.warm_start import WarmStart
from stages.config.world import World
from stages.config.yaml import ParamsError, flatten, read_yaml

BANNED_NAMES = (
    "size",
    "nfiles",
)  # DVC does not see changes of such a key and restores the old output (DVC issue 10296)
_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")  # ids are parts of paths; .dvcignore holds DVC to the same characters


class Params(Block):
    """All of `params.yaml`."""

    seed: int = Field(0, ge=0, description="Seed of training and selection; stored answers do not depend on it.")
    world: World
    models: dict[str, Model]
    questions: Questions
    warm_start: WarmStart
    teachers: dict[str, Teacher] = Field(min_length=1)
    verdict: Verdict
    pool: Pool
    rollout: Rollout
    discriminator: Discriminator
    ril: Ril
    evaluate: Evaluate
    evaluations: dict[str, Evaluation] = Field(min_length=1)
    report: Report
    runtime: Runtime

    @field_validator("models", "teachers", "evaluations")
    @classmethod
    def _check_ids(cls, items: dict[str, Any]) -> dict[str, Any]:
        for name in items:
            if not _ID.fullmatch(name):
                raise ValueError(
                    f"id {name[:80]!r} must be letters, digits and _: 1 to 64 of a-z, A-Z, 0-9 and _, the first no "
                    "digit, since it is part of paths; rename it"
                )
        return items

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        def check_known(key: str, value: str, items: Mapping[str, object], block: str) -> None:
            if value not in items:
                raise ValueError(f"{key} is {value!r}, not an entry of {block}; known: {', '.join(items)}")

        check_known("models", "student", self.models, "models")
        for name, teacher in self.teachers.items():
            if name in ("student", "teacher"):
                raise ValueError(
                    f"teachers.{name}: histories call all answers of that side so; give this teacher another id"
                )
            check_known(f"teachers.{name}.model", teacher.model, self.models, "models")
        for name in self.pool.teachers:
            check_known("pool.teachers", name, self.teachers, "teachers")
        check_known("verdict.model", self.verdict.model, self.models, "models")
        check_known("evaluate.judge", self.evaluate.judge, self.models, "models")
        for name in self.runtime.engines:
            check_known("runtime.engines", name, self.models, "models")
        for name in self.models:
            self._check_engine(name)
        if (port := getattr(self.runtime.engines.get("student"), "port", None)) is not None:
            raise ValueError(
                f"runtime.engines.student.port is {port}; servers of a model in training let any caller run code in "
                "them, so they have a Unix socket only; remove port"
            )
        student, judge = self.models["student"].family, self.models[self.verdict.model].family
        if student == "qwen2_5":
            raise ValueError("models.student.family is 'qwen2_5', a text model; the student must see images")
        if student == "remote":
            raise ValueError(
                "models.student.family is 'remote', but the student is trained here; give build, path or hub"
            )
        if judge not in ("qwen2_5", "remote"):
            raise ValueError(
                f"models.{self.verdict.model}.family is {judge!r}; the judge reads text only: use 'qwen2_5' or 'remote'"
            )
        self._check_responses()
        self._check_watched()
        if line := find_contradiction(self.objective, read_choices(ril=self.ril, discriminator=self.discriminator)):
            raise ValueError(line)
        if self.discriminator.responses_per_side > self.rollout.responses:
            raise ValueError(
                f"discriminator.responses_per_side is {self.discriminator.responses_per_side}, "
                f"more than rollout.responses ({self.rollout.responses}); lower it"
            )
        return self

    def _check_engine(self, name: str) -> None:
        """Raises if answers of an endpoint would be stored under the name of local weights, or vice versa."""
        engine = self.runtime.engines.get(name)
        kind = engine.kind if engine else "vllm"
        if self.models[name].endpoint is not None and kind not in ("openai", "replay"):
            raise ValueError(
                f"models.{name}.endpoint is a remote model, but its engine is {kind!r}; "
                f"give runtime.engines.{name} the kind openai with base_url, or replay"
            )
        if self.models[name].endpoint is None and kind == "openai":
            raise ValueError(
                f"runtime.engines.{name}.kind is 'openai', but models.{name} has its own weights, and nothing "
                "shows that the "
                "endpoint serves these; use vllm_server with urls, or give the model an endpoint"
            )

    @property
    def objective(self) -> Objective:
        """All switches of the objective and of the discriminator with their final values."""
        return self.ril.resolve(self.discriminator)

    def _check_watched(self) -> None:
        """DVC tracks the code of the tiny world only if a parameter names it, so that no real run depends on it."""
        built = next((f"models.{name} is built from scratch (build)" for name, m in self.models.items() if m.build), "")
        drawn = "questions.kind is 'world'" if self.questions.kind == "world" else ""
        tiny = next((f"evaluate.benchmarks has {name!r}" for name in self.evaluate.benchmarks if _is_tiny(name)), "")
        for key, value, code, reason in (
            ("world.code", self.world.code, "stages/tiny/world", built),
            ("world.builds", self.world.builds, "stages/tiny/builds", built),
            ("questions.path", self.questions.path, "stages/tiny/world_rows.py", drawn),
            ("questions.images", self.questions.images, "stages/tiny/world", drawn),
            ("evaluate.folder", self.evaluate.folder, "stages/tiny/benchmarks", tiny),
        ):
            if reason and value != code:
                raise ValueError(f"{key} is {value!r}, but {reason}, so DVC must track {code}; set it to that")

    def _check_responses(self) -> None:
        stored = sum(self.teachers[name].responses for name in self.pool.teachers)
        if stored < self.ril.group:
            raise ValueError(
                f"ril.group is {self.ril.group}, but the teachers of the pool give {stored} answers a question; "
                "raise teachers.<id>.responses or lower ril.group"
            )


def _is_tiny(benchmark: str) -> bool:
    return benchmark.startswith("tiny_")


def validate_params(values: Mapping[str, Any], source: str = "params.yaml") -> Params:
    """Returns `values` as `Params`; raises ParamsError with one line per mistake."""
    banned = [key for key in flatten(values) if not set(BANNED_NAMES).isdisjoint(key.split("."))]
    if banned:
        raise ParamsError(
            f"{source}: {', '.join(banned)}: DVC does not see changes of keys named size or nfiles; rename it"
        )
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError("\n".join(f"{source}: {_explain_error(item)}" for item in error.errors())) from error


def load_params(path: Path) -> Params:
    """Reads and validates a parameters file."""
    return validate_params(read_yaml(path), str(path))


def _list_fields_near(location: tuple[int | str, ...]) -> list[str]:
    """Returns the names that the block at `location` (without its last part) accepts."""
    if _is_engine(location):
        return list(ENGINE_KINDS[str(location[3])].model_fields)
    block: Any = Params
    for part in location[:-1]:
        if isinstance(block, type) and issubclass(block, Block) and part in block.model_fields:
            annotation = block.model_fields[str(part)].annotation
            choices = [annotation, *getattr(annotation, "__args__", ())]
            inner = [choice for choice in choices if isinstance(choice, type) and issubclass(choice, Block)]
            block = inner[0] if inner else None
            in_dict = getattr(annotation, "__origin__", None) is dict
            block = (block,) if in_dict and block else block
        elif isinstance(block, tuple):
            block = block[0]
    return list(block.model_fields) if isinstance(block, type) and issubclass(block, Block) else []


def _is_engine(location: tuple[int | str, ...]) -> bool:
    """Whether a location is a kind in runtime.engines.<id>: pydantic inserts it, and the file has no such key."""
    return location[:2] == ("runtime", "engines") and len(location) > 4


def _explain_error(error: Mapping[str, Any]) -> str:
    import difflib

    location = tuple(error["loc"])
    shown = (*location[:3], *location[4:]) if _is_engine(location) else location
    key = ".".join(str(part) for part in shown) or "(whole file)"
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        names = _list_fields_near(location)
        close = difflib.get_close_matches(str(location[-1]), names, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(names)}" if names else "remove it"
        return f"{key} = {value!r} is not a known key; {remedy}"
    if kind == "missing":
        return f"{key} is missing; add it"
    message = str(error["msg"]).removeprefix("Value error, ")
    if isinstance(value, Mapping):
        return f"{key}: {message}"
    remedy = "; write it without quotes" if kind.startswith(("float", "int", "bool")) and isinstance(value, str) else ""
    return f"{key} = {value!r}: {message}{remedy}"
