"""Reads studies/<name>.yaml: arms as differences from params.yaml, seeds, and the sweep of every trained arm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from flows.profile import read_profile
from stages.config.block import Block
from stages.config.build import Pair
from stages.config.params import Params, validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml

_INHERITED = ("params", "shared", "beside", "sweep", "tuning", "seeds", "budgets")
_OF_ARMS = ("arms", "order", "differences", "primary", "claim", "mechanism", "best_of")
LOOP = "ril"  # the entry of `evaluations` that scores what the loop trained


class Seeds(Block):
    """One repetition."""

    world: int = Field(ge=0, description="`world.seed`: pictures, questions, tiny models.")
    seed: int = Field(ge=0, description="`seed`: warm start, discriminator, loop.")
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="What else differs in this repetition, for every arm, such as teachers' faults.",
    )
    faults: dict[str, list[Pair]] = Field(
        default_factory=dict,
        description="Pairs of digits by teacher whose exchange is looked for in answers although no teacher has this "
        "fault: for arms that another study takes, and for what is equal by chance.",
    )

    def __str__(self) -> str:
        return f"world {self.world}, seed {self.seed}"


class BestOf(Block):
    """An arm that is run nowhere: in each seed it is the most accurate of several arms."""

    title: str
    arms: list[str] = Field(min_length=1)


class Claim(Block):
    """What the page says first: whether all of these differences are there."""

    text: str = Field(description="The claim as a clause, such as: RIL is better than either of its parts.")
    pairs: list[list[str]] = Field(min_length=1, description="Differences of `primary` that must all be higher.")


class Arm(Block):
    """One compared setting."""

    title: str
    evaluation: str = Field(LOOP, description="The entry of `evaluations` that scores it.")
    params: dict[str, Any] = Field(
        default_factory=dict, description="What differs from params.yaml and the study's `params`."
    )
    budget: str | None = Field(None, description="An entry of `budgets`; default: the length of the study's `params`.")
    rate_of: str | None = Field(None, description="The arm whose swept value it uses; it has no sweep of its own.")

    @property
    def trained(self) -> bool:
        """Whether the loop trains it; only trained arms are swept and share a budget."""
        return self.evaluation == LOOP


class Study(Block):
    """The content of studies/<name>.yaml."""

    title: str
    about: str = Field(description="What is compared, in one or two sentences; shown on the page.")
    params: dict[str, Any] = Field(default_factory=dict, description="What differs from params.yaml for every arm.")
    shared: list[str] = Field(
        default_factory=list, description="Further targets of the first arm: what all arms of a seed need."
    )
    beside: list[str] = Field(
        default_factory=list, description="Further targets of every arm; the pool holds the teachers' styles."
    )
    sweep: dict[str, list[float]] = Field(
        default_factory=dict,
        description="One parameter of the loop with the values to try for every trained arm.",
    )
    tuning: list[Seeds] = Field(default_factory=list, description="Seeds of the sweep; never among `seeds`.")
    seeds: list[Seeds] = Field(min_length=1, description="Seeds of the comparison.")
    arms: dict[str, Arm] = Field(min_length=2)
    order: list[list[str]] = Field(
        default_factory=list, description="The claimed ranking, from worse to better; arms in one list are not ranked."
    )
    limits: list[str] = Field(
        default_factory=list, description="What the results do not show, one sentence each; shown on the page."
    )
    real_models: list[str] = Field(
        default_factory=list,
        description="What the results say about real models, and what they do not, one sentence each; a section.",
    )
    differences: list[list[str]] = Field(default_factory=list, description="Pairs of arms: the first minus the second.")
    primary: list[list[str]] = Field(
        default_factory=list,
        description="Pairs that decide, with Holm's correction for them alone; all others are then exploratory.",
    )
    claim: Claim | None = Field(None, description="What the primary differences are to show.")
    budgets: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Further lengths of the loop: what differs from the study's `params`."
    )
    best_of: dict[str, BestOf] = Field(default_factory=dict, description="Arms made of others, seed by seed.")
    take: dict[str, list[str]] = Field(
        default_factory=dict, description="By study, arms whose records are taken from it: they are equal there."
    )
    rates_of: str | None = Field(None, description="The study whose chosen values are used; no sweep of its own.")
    frozen: bool = Field(
        False, description="Whether the file of the chosen values has to be committed before the comparison."
    )
    mechanism: list[str] = Field(default_factory=list, description="Arms in the figure of the mechanism.")

    @property
    def borrowed(self) -> dict[str, str]:
        """The study by the arm that is taken from it."""
        return {name: study for study, names in self.take.items() for name in names}

    def is_swept(self, name: str) -> bool:
        """Whether the loop of arm `name` gets a value of the sweep, its own or another arm's."""
        return self.arms[name].trained and (bool(self.sweep) or self.rates_of is not None)

    def is_tuned(self, name: str) -> bool:
        """Whether arm `name` has a sweep of its own in this study."""
        own = self.arms[name].rate_of is None and name not in self.borrowed
        return self.is_swept(name) and own and self.rates_of is None

    @model_validator(mode="after")
    def _check_agreement(self) -> Self:
        worlds = {one.world for one in self.tuning} & {one.world for one in self.seeds}
        if worlds:
            raise ValueError(f"world {min(worlds)} is in `tuning` and in `seeds`; they must not share a data set")
        if len(set(map(str, self.seeds))) < len(self.seeds):
            raise ValueError("`seeds` has one pair twice; each pair is one repetition")
        pairs = [*self.differences, *self.primary, *(self.claim.pairs if self.claim else [])]
        named = [*(name for step in self.order for name in step), *(name for pair in pairs for name in pair)]
        named += [*self.mechanism, *(name for found in self.take.values() for name in found)]
        named += [name for one in self.best_of.values() for name in one.arms]
        if self.rates_of is None:
            named += [arm.rate_of for arm in self.arms.values() if arm.rate_of is not None]
        known = [*self.arms, *self.best_of]
        for name in named:
            if name not in known:
                raise ValueError(f"no arm {name!r}; arms: {', '.join(known)}")
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("`differences` and `primary` hold pairs of arms, such as [ril, warm_start]")
        if self.claim and (other := [pair for pair in self.claim.pairs if pair not in self.primary]):
            raise ValueError(f"`claim` names {other[0]}, which is not in `primary`")
        for name, arm in self.arms.items():
            if arm.budget is not None and arm.budget not in self.budgets:
                raise ValueError(f"arm {name} has budget {arm.budget!r}; budgets: {', '.join(self.budgets) or 'none'}")
        if len(self.sweep) > 1 or any(len(values) < 1 for values in self.sweep.values()):
            raise ValueError("`sweep` is one parameter with its values, such as {ril.learning_rate: [2.0e-4, 4.0e-4]}")
        if any(len(values) > 1 for values in self.sweep.values()) and not self.tuning:
            raise ValueError("`sweep` has several values, but `tuning` has no seeds")
        return self


def list_studies(root: Path) -> dict[str, str]:
    """Names of the studies in `root`/studies with their titles."""
    return {path.stem: str(read_yaml(path).get("title", "")) for path in sorted((root / "studies").glob("*.yaml"))}


def find_alike(root: Path, name: str) -> list[str]:
    """Names of the studies derived from study `name` (`like`)."""
    files = sorted((root / "studies").glob("*.yaml"))
    return [path.stem for path in files if read_yaml(path).get("like") == name]


def read_study(root: Path, name: str) -> Study:
    """Study `name`; keys that its file leaves out are those of the study that its `like` names.

    The arms, and what speaks of arms, are inherited together. Raises ParamsError with one line per mistake.
    """
    path = root / "studies" / f"{name}.yaml"
    if not path.is_file():
        raise ParamsError(f"no study {name!r}; there are: {', '.join(list_studies(root)) or 'none'}")
    values = read_yaml(path)
    if (other := values.pop("like", None)) is not None:
        inherited = read_yaml(root / "studies" / f"{other}.yaml")
        keys = (*_INHERITED, *(_OF_ARMS if "arms" not in values else ()))
        values = {**{key: inherited[key] for key in keys if key in inherited}, **values}
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, one['loc'])) or '(whole file)'}: {one['msg']}" for one in error.errors()]
        raise ParamsError("\n".join(lines).replace("Value error, ", "")) from error


def make_values(root: Path, study: Study, arm: Arm, seeds: Seeds, profile: str | None = None) -> dict[str, Any]:
    """The parameters of one arm: params.yaml, overlaid by the study, its budget, the profile, the arm and the seeds, in
    this order.

    Raises ParamsError when they contradict each other.
    """
    base = merge_params(read_yaml(root / "params.yaml"), study.params)
    if arm.budget is not None:
        base = merge_params(base, study.budgets[arm.budget])
    if profile is not None:
        base = merge_params(base, read_profile(root, profile))
    own = {"world": {"seed": seeds.world}, "seed": seeds.seed}
    values = merge_params(merge_params(merge_params(base, arm.params), seeds.params), own)
    validate_params(values, f"arm {arm.title!r}")
    return values


def set_value(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`values` with `value` at the dotted key."""
    overlay: Any = value
    for part in reversed(key.split(".")):
        overlay = {part: overlay}
    return merge_params(values, overlay)


def extract_budget(params: Params) -> dict[str, Any]:
    """What compared arms must share: questions, steps, rows, schedule, sampling; not the learning rate.

    An arm that learns from references has one row per question: copies of the same row change nothing.
    """
    ril, objective = params.ril, params.objective
    one_side = objective.teacher_rows == "none" or not objective.samples
    rows = 1 if objective.references else ril.group * (1 if one_side else 2)
    return {
        "steps": ril.steps,
        "questions_per_step": ril.questions_per_step,
        "rows_per_question": rows,
        "schedule": (
            f"{ril.lr_scheduler_type}, {ril.warmup_steps} steps of warm-up, down to {ril.final_learning_rate:g}"
        ),
        "sampling": ril.sampling.model_dump(mode="json"),
        "questions": params.questions.model_dump(mode="json"),
    }


def check_budgets(root: Path, study: Study) -> dict[str, Any]:
    """The common budget of the trained arms without a `budget` of their own. Raises ParamsError if arms of one budget
    differ.
    """
    found: dict[str | None, dict[str, Any]] = {}
    first: dict[str | None, str] = {}
    for name, arm in study.arms.items():
        if not arm.trained:
            continue
        params = validate_params(make_values(root, study, arm, study.seeds[0]), f"arm {name}")
        common = found.setdefault(arm.budget, {})
        for key, value in extract_budget(params).items():
            if key == "rows_per_question" and params.objective.references:
                continue
            if common.setdefault(key, value) != value:
                raise ParamsError(
                    f"arm {name}: {key} is {value}, that of {first[arm.budget]} is {common[key]}; compared arms need "
                    "an equal budget"
                )
        first.setdefault(arm.budget, name)
    return found.get(None, {})
