"""Loads `params.yaml` and validates it once into a typed object."""

import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from stages.config.benchmarks import TINY_BENCHMARKS
from stages.config.block import Block
from stages.config.budget import Budget
from stages.config.discriminator import Discriminator
from stages.config.distillation import find_wrong_model
from stages.config.engines import ENGINE_KINDS, GpuUse, OpenAi, VllmServer
from stages.config.evaluate import Evaluate, Evaluation
from stages.config.lora import get_quantization
from stages.config.model import TEXT_FAMILIES, Model
from stages.config.objective import Objective
from stages.config.own_rewards import explain_missing_function
from stages.config.paths import holds_project
from stages.config.placement import LOOP, find_rank_gpus, place_loop, spans_machines
from stages.config.plain import abbreviate, list_faults
from stages.config.pool import Pool
from stages.config.questions import Questions
from stages.config.report import Report
from stages.config.ril import Ril
from stages.config.rollout import Rollout
from stages.config.runtime import LARGEST_SERVED_RANK, Runtime
from stages.config.selection import Selection
from stages.config.switch import find_contradiction
from stages.config.table import STAGES
from stages.config.teacher import Teacher
from stages.config.tracking import Tracking
from stages.config.uses import list_used_models
from stages.config.verdict import Verdict
from stages.config.warm_start import WarmStart
from stages.config.world import BUILT_FROM_WORLD, QUESTIONS_FOLDER, World
from stages.config.yaml import ParamsError, read_yaml

MOST_LINES, LONGEST_LINE = 20, 800  # of mistakes that are shown, and of each
_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")  # ids are parts of paths; .dvcignore holds DVC to the same characters


class Params(Block):
    """All of `params.yaml`."""

    seed: int = Field(
        0, ge=0, le=2**53 - 1, description="Seed of training and selection; stored answers do not depend on it."
    )
    world: World
    models: dict[str, Model]
    questions: Questions
    warm_start: WarmStart
    selection: Selection
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
    budget: dict[str, Budget] = Field(
        default_factory=dict,
        description="Caps on what stages spend, by stage or run: {teacher: {answers: 1000}, verdict@gpt: {money: 5}}.",
    )
    tracking: Tracking = Field(default_factory=Tracking)

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
        check_known("selection.teacher", self.selection.teacher, self.models, "models")
        for key, name, _ in self.runtime.iter_engines():
            check_known(key.rpartition(".")[0], name, self.models, "models")
        for name in self.models:
            self._check_engine(name)
        self._check_servers()
        self._check_weight_transfer()
        student, judge = self.models["student"].family, self.models[self.verdict.model].family
        if student in TEXT_FAMILIES:
            raise ValueError(f"models.student.family is {student!r}, a text model; the student must see images")
        if student == "remote":
            raise ValueError(
                "models.student.family is 'remote', but the student is trained here; give build, path or hub"
            )
        blind = next((one.title for one in self.objective.rubrics if one.images), None)
        if blind is not None and judge in TEXT_FAMILIES:
            raise ValueError(
                f"ril.rewards: {blind!r} shows images to the judge, but models.{self.verdict.model}.family is "
                f"{judge!r}, a text model; remove images, or take a judge that sees them"
            )
        self._check_selection()
        if line := find_wrong_model(self):
            raise ValueError(line)
        self._check_placement()
        self._check_reference()
        self._check_checkpoints()
        self._check_responses()
        self._check_watched()
        self._check_rewards()
        self._check_lessons()
        self._check_budget()
        if line := find_contradiction(self.objective, self.ril.read_choices(self.discriminator)):
            raise ValueError(line)
        if self.discriminator.responses_per_side > self.rollout.responses:
            raise ValueError(
                f"discriminator.responses_per_side is {self.discriminator.responses_per_side}, "
                f"more than rollout.responses ({self.rollout.responses}); lower it"
            )
        return self

    def _check_selection(self) -> None:
        """Raises if a model cannot score reference answers, or if more questions are to be kept than there are."""
        if not self.selection.top:
            return
        family = self.models[self.selection.teacher].family
        if family in ("remote", *TEXT_FAMILIES):
            lack = "sees no images" if family in TEXT_FAMILIES else "gives no log probabilities of a given answer"
            raise ValueError(
                f"selection.teacher is {self.selection.teacher!r} of family {family!r}, which {lack}; name a model "
                "with weights that sees images"
            )
        count = self.questions.splits[self.selection.split]
        if count != "all" and self.selection.top > count:
            raise ValueError(
                f"selection.top is {self.selection.top}, more than questions.splits.{self.selection.split} ({count}); "
                "lower it"
            )

    @property
    def distilled_models(self) -> tuple[str, ...]:
        """Entries of `models` that score the student's answers in the loop; none unless the objective distils."""
        return self.ril.distillation if self.objective.distils else ()

    def _check_engine(self, name: str) -> None:
        """Raises if answers of an endpoint would be stored under the name of local weights, or vice versa."""
        engines = {key: engine.kind for key, model, engine in self.runtime.iter_engines() if model == name}
        for key, kind in ({f"runtime.engines.{name}": "vllm"} | engines).items():
            if self.models[name].endpoint is not None and kind not in ("openai", "replay"):
                raise ValueError(
                    f"models.{name}.endpoint is a remote model, but its engine is {kind!r}; "
                    f"give {key} the kind openai with base_url, or replay"
                )
            if self.models[name].endpoint is None and kind == "openai":
                raise ValueError(
                    f"{key}.kind is 'openai', but models.{name} has its own weights, and nothing shows that the "
                    "endpoint serves these; use vllm_server with urls, or give the model an endpoint"
                )

    def _check_servers(self) -> None:
        """Raises for a server with a port whose routes let any caller run code in it."""
        for key, name, engine in self.runtime.iter_engines():
            if not isinstance(engine, VllmServer) or engine.port is None:
                continue
            if name == "student" or engine.sharing == "sleep":
                why = "of a model in training" if name == "student" else "that sleep"
                raise ValueError(
                    f"{key}.port is {engine.port}; servers {why} let any caller run code in them, so they have a Unix "
                    "socket only; remove port"
                )

    def _check_weight_transfer(self) -> None:
        """Raises for a way to the student's engine that there is not."""
        transfer, lora, runtime = self.runtime.weight_transfer, self.ril.lora, self.runtime
        if transfer == "adapter" and lora is None:
            raise ValueError(
                "runtime.weight_transfer is 'adapter', but ril.lora is off: all weights are trained and must be sent; "
                "take auto, or set ril.lora"
            )
        if transfer == "adapter" and lora is not None and lora.rank > LARGEST_SERVED_RANK:
            raise ValueError(
                f"runtime.weight_transfer is 'adapter', but ril.lora.rank is {lora.rank}, and vLLM applies adapters up "
                f"to rank {LARGEST_SERVED_RANK}; take auto, or lower the rank"
            )
        if transfer == "adapter" and (kind := get_quantization(lora)) != "none":
            raise ValueError(
                f"runtime.weight_transfer is 'adapter', but ril.lora.quantization is {kind!r}: the engine's weights "
                "are not rounded to 4 bits, and the adapter belongs to rounded ones; take auto"
            )
        student = runtime.find_engine(LOOP, "student")
        if transfer == "direct" and isinstance(student, GpuUse) and spans_machines(student):
            raise ValueError(
                f"runtime.weight_transfer is 'direct', but {runtime.find_engine_key(LOOP, 'student')} spans machines "
                "(Ray): its weights go through a file in the store; take auto"
            )

    def _check_placement(self) -> None:
        """Raises for GPUs that do not exist, and for GPUs of stage `ril` that are claimed twice."""
        runtime = self.runtime
        for stage in runtime.rank_gpus:
            if runtime.gpus and (beyond := [gpu for gpu in find_rank_gpus(runtime, stage) if gpu >= runtime.gpus]):
                raise ValueError(
                    f"runtime.rank_gpus.{stage} names GPU {beyond[0]}, but runtime.gpus is {runtime.gpus}: they are "
                    "numbered from 0; change one of them"
                )
        for key, _, engine in runtime.iter_engines():
            if isinstance(engine, GpuUse) and runtime.gpus and max(engine.gpus, default=0) >= runtime.gpus:
                raise ValueError(
                    f"{key}.gpus names GPU {max(engine.gpus)}, but runtime.gpus is {runtime.gpus}: they are numbered "
                    "from 0; change one of them"
                )
        judge = self.verdict.model if self.objective.asks_judge else None
        place_loop(runtime, judge, runtime.gpus, self.distilled_models)

    def _check_reference(self) -> None:
        """Raises if the reference is to be divided while its model is the base of adapters."""
        adapters = {"ril.lora": self.ril.lora}
        if self.objective.uses_discriminator:
            adapters["discriminator.lora"] = self.discriminator.lora
        shared = next((key for key, lora in adapters.items() if lora), None)
        if self.runtime.reference != "replicated" and shared:
            raise ValueError(
                f"runtime.reference is {self.runtime.reference!r}, but with {shared} the reference is the base of "
                "adapters, which is whole on every rank; set it to replicated"
            )

    @property
    def objective(self) -> Objective:
        """All switches of the objective and of the discriminator with their final values."""
        return self.ril.resolve(self.discriminator)

    def _check_checkpoints(self) -> None:
        made = [*(f"data/model/{name}" for name in self.models), "data/warm_start", "data/ril/model"]
        made += ["data/ril/last"] if self.ril.keep == "both" else []
        titles: dict[str, str] = {}
        for name, one in self.evaluations.items():
            if one.checkpoint not in made:
                raise ValueError(
                    f"evaluations.{name}.checkpoint is {abbreviate(one.checkpoint)}, which no stage writes; "
                    f"models are in {', '.join(made)}"
                )
            other = titles.setdefault(one.title, name)
            if other != name:
                raise ValueError(
                    f"evaluations.{name}.title is {abbreviate(one.title)}, the title of evaluations.{other} too; "
                    "tables and plots tell models apart by it: change one"
                )

    def _check_watched(self) -> None:
        """DVC tracks the code of the tiny world only if a parameter names it, so that no real run depends on it."""
        built = next((f"models.{name} is built from scratch (build)" for name, m in self.models.items() if m.build), "")
        drawn = "questions.kind is 'world'" if self.questions.kind == "world" else ""
        tiny = next(
            (f"evaluate.benchmarks has {name!r}" for name in self.evaluate.benchmarks if name in TINY_BENCHMARKS), ""
        )
        for key, value, code, reason in (
            ("world.code", self.world.code, "stages/tiny/world", built),
            ("world.builds", self.world.builds, "stages/tiny/builds", built),
            ("questions.path", self.questions.path, "stages/tiny/world_rows.py", drawn),
            ("questions.images", self.questions.images, "stages/tiny/world", drawn),
            ("evaluate.folder", self.evaluate.folder, "stages/tiny/benchmarks", tiny),
            ("ril.reward_code", self.ril.reward_code, "", ""),
        ):
            if reason and value != code:
                shown = abbreviate(value)
                raise ValueError(f"{key} is {shown}, but {reason}, so DVC must track {code}; set it to that")
            folder, *inner = PurePosixPath(value).parts
            if folder in ("data", "reports") and (not inner or inner[0] in STAGES):
                raise ValueError(
                    f"{key} is {abbreviate(value)}, which holds what stages write and would depend on itself; name the "
                    "file or folder with your data"
                )

    def _check_rewards(self) -> None:
        """Raises for a file of `ril.rewards` that DVC would not watch."""
        watched = PurePosixPath(self.ril.reward_code)
        for number, reward in enumerate(self.ril.rewards):  # type: ignore[attr-defined]
            if reward.file is not None and not PurePosixPath(reward.file).is_relative_to(watched):
                raise ValueError(
                    f"ril.rewards[{number}].use is {abbreviate(reward.use)}, but ril.reward_code is "
                    f"{abbreviate(self.ril.reward_code)}, so DVC does not watch that file; set ril.reward_code to "
                    f"{reward.file}, or to a folder with all your functions"
                )

    def _check_lessons(self) -> None:
        """A text model has no tower to train; what only the tiny world teaches is not asked of others."""
        for name, model in self.models.items():
            if model.build is not None and model.build.vision_steps and model.family in TEXT_FAMILIES:
                raise ValueError(
                    f"models.{name}.build.vision_steps is {model.build.vision_steps}, but family {model.family} reads "
                    "text only and has no vision tower; remove it"
                )
        if self.world.data == BUILT_FROM_WORLD:
            return
        for name, model in self.models.items():
            for key in ("practice_groups", "terse_kinds", "confuses"):
                if model.build is not None and (value := getattr(model.build, key)):
                    raise ValueError(
                        f"models.{name}.build.{key} is {abbreviate(value)}, which the tiny world alone has, but "
                        f"world.data is {QUESTIONS_FOLDER}; remove {key} or set world.data to {BUILT_FROM_WORLD}"
                    )

    def _check_budget(self) -> None:
        """Raises for caps on a run that there is not, and on money without the prices of an endpoint."""
        for name, caps in self.budget.items():
            stage, _, item = name.partition("@")
            items = getattr(self, STAGES[stage].items or "", {}) if stage in STAGES else {}
            if stage not in STAGES or ("@" in name and item not in items):
                raise ValueError(f"budget.{name} is no stage and no run; stages: {', '.join(STAGES)}")
            runs = [name] if item or not items else [f"{stage}@{one}" for one in items]
            for model in (model for run in runs if caps.money is not None for model in list_used_models(self, run)):
                engine = self.runtime.find_engine(stage, model)
                if isinstance(engine, OpenAi) and None in (engine.prompt_price, engine.completion_price):
                    key = self.runtime.find_engine_key(stage, model)
                    raise ValueError(f"budget.{name}.money needs prices: set {key}.prompt_price and completion_price")

    def _check_responses(self) -> None:
        stored = sum(self.teachers[name].responses for name in self.pool.teachers)
        if stored < self.ril.group:
            raise ValueError(
                f"ril.group is {self.ril.group}, but the teachers of the pool give {stored} answers a question; "
                "raise teachers.<id>.responses or lower ril.group"
            )


def validate_params(values: Mapping[str, Any], source: str = "params.yaml") -> Params:
    """Returns `values` as `Params`, none changed; raises ParamsError with one line per mistake."""
    if faults := list(islice(list_faults(values), MOST_LINES)):
        raise ParamsError("\n".join(f"{source}: {line}" for line in faults))
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise _explain_errors(error, source) from error


def load_runtime(path: Path) -> Runtime:
    """Reads and validates the block `runtime` of a parameters file alone: all that `flows/dvc` needs to know."""
    try:
        return Runtime.model_validate(read_yaml(path).get("runtime", {}))
    except ValidationError as error:
        raise _explain_errors(error, str(path), "runtime") from error


def _explain_errors(error: ValidationError, source: str, *block: str) -> ParamsError:
    """Returns the error with one line per mistake; `block` is the key of what was validated."""
    found = islice(error.errors(), MOST_LINES)
    lines = [_explain_error({**item, "loc": (*block, *item["loc"])}) for item in found]
    return ParamsError("\n".join(f"{source}: {_fit(line)}" for line in lines))


def _fit(line: str) -> str:
    """Returns `line` without its middle if it is long: the key is at its start, the remedy at its end."""
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"


def load_params(path: Path) -> Params:
    """Reads and validates a parameters file; the paths in it are relative to its folder."""
    params = validate_params(read_yaml(path), str(path))
    watched = {"questions.path": params.questions.path, "questions.images": params.questions.images}
    watched |= {"evaluate.folder": params.evaluate.folder, "ril.reward_code": params.ril.reward_code}
    for key, value in watched.items():
        if holds_project(path.parent, value):
            raise ParamsError(
                f"{path}: {key} = {abbreviate(value)}: the folder of the project or one that holds it; name the file "
                "or folder with your data"
            )
    for number, reward in enumerate(params.ril.rewards):  # type: ignore[attr-defined]
        if line := explain_missing_function(path.parent, reward):
            raise ParamsError(f"{path}: ril.rewards[{number}].use = {abbreviate(reward.use)}: {line}")
    return params


def _list_fields_near(location: tuple[int | str, ...]) -> list[str]:
    """Returns the names that the block at `location` (without its last part) accepts."""
    if place := _find_engine_kind(location):
        return list(ENGINE_KINDS[str(location[place])].model_fields)
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


def _find_engine_kind(location: tuple[int | str, ...]) -> int:
    """Returns the place of an engine's kind in a location, 0 without: pydantic inserts it, the file has no such key."""
    places: dict[tuple[int | str, ...], int] = {("runtime", "engines"): 3, ("runtime", "stage_engines"): 4}
    place = places.get(location[:2], 0)
    return place if place and len(location) > place + 1 else 0


def _explain_error(error: Mapping[str, Any]) -> str:
    import difflib

    location = tuple(error["loc"])
    kind_place = _find_engine_kind(location)
    shown = (*location[:kind_place], *location[kind_place + 1 :]) if kind_place else location
    key = ".".join(str(part) for part in shown) or "(whole file)"
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        names = _list_fields_near(location)
        close = difflib.get_close_matches(str(location[-1]), names, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(names)}" if names else "remove it"
        return f"{key} = {abbreviate(value)} is not a known key; {remedy}"
    if kind == "missing":
        return f"{key} is missing; add it"
    message = str(error["msg"]).removeprefix("Value error, ")
    if isinstance(value, Mapping):
        return f"{key}: {message}" if location else message
    remedy = "; write it without quotes" if kind.startswith(("float", "int", "bool")) and isinstance(value, str) else ""
    return f"{key} = {abbreviate(value)}: {message}{remedy}"
