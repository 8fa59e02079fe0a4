"""What every run of the pipeline will take: memory, disk, answers, tokens, hours, money. Nothing is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.estimate.amounts import Range
from flows.estimate.cards import Card, name_machine, read_cpu, read_gpus
from flows.estimate.engines import EngineMemory
from flows.estimate.hours import HourEstimator, Hours
from flows.estimate.models import KnownModel, find_models
from flows.estimate.past import read_calibration, read_past
from flows.estimate.process import ProcessEstimator
from flows.estimate.storage import Storage, StorageEstimator
from flows.estimate.stored import StoredCounts
from flows.estimate.table import Estimate, GpuMemory, MemoryEstimator
from flows.estimate.trained import list_trained
from flows.estimate.workload import MeanLengths, StageWork, Workload
from stages.config.params import Params
from stages.config.placement import LOOP


@dataclass(frozen=True)
class Prices:
    """Prices: of a GPU hour, and of a million tokens of an endpoint in and out, by entry of `models` or for all."""

    gpu_hour: float | None = None
    tokens_in: Mapping[str, float] = field(default_factory=dict)  # "" for all
    tokens_out: Mapping[str, float] = field(default_factory=dict)

    def find(self, model: str) -> tuple[float, float] | None:
        """Returns what a million tokens in and out cost at the endpoint of `model`; None if that is not known."""
        found = (self.tokens_in.get(model, self.tokens_in.get("")), self.tokens_out.get(model, self.tokens_out.get("")))
        return None if None in found else (found[0] or 0.0, found[1] or 0.0)


@dataclass(frozen=True)
class StagePlan:
    """One run of the pipeline."""

    run: str
    work: StageWork
    rows: Sequence[GpuMemory]  # GPUs with the same work; without GPUs its processes
    storage: Storage
    hours: Hours
    gpus: int  # that it has while it runs
    money: Range | None  # None: no price was given
    state: str = ""  # up to date, or why it will run
    runs: bool = True

    @property
    def answers(self) -> tuple[int, int]:
        """Answers that are wanted, and those of them that are generated."""
        return sum(each.count for each in self.work.answers), sum(each.fresh for each in self.work.answers)

    @property
    def gpu_hours(self) -> Range:
        """Hours of all its GPUs together."""
        return self.hours.hours.scale(self.gpus)


@dataclass(frozen=True)
class PipelinePlan:
    """All runs, and where their figures are from."""

    stages: Sequence[StagePlan]
    memory: Estimate
    card: Card
    models: Mapping[str, KnownModel]
    machine: str | None  # whose calibration was used
    prices: Prices

    def find(self, run: str) -> StagePlan:
        """Returns the plan of one run."""
        return next(one for one in self.stages if one.run == run)

    @property
    def to_run(self) -> list[StagePlan]:
        """The runs that are not up to date."""
        return [one for one in self.stages if one.runs]


@dataclass(frozen=True)
class Given:
    """What a plan is made from, beside parameters."""

    root: Path
    store: Path
    models: Mapping[str, KnownModel]
    card: Card | None = None  # None: no GPU; the memory of this machine
    lengths: MeanLengths = field(default_factory=MeanLengths)
    prices: Prices = field(default_factory=Prices)
    host: Card = field(default_factory=read_cpu)


def estimate_memory(params: Params, given: Given) -> Estimate:
    """Returns the memory of every stage, on the GPUs or of the processes."""
    shapes = {name: one.shape for name, one in given.models.items()}
    if given.card is None:
        return ProcessEstimator(params, shapes, given.host.memory, given.lengths.prompt).estimate()
    return MemoryEstimator(params, shapes, given.card.memory).estimate()


def plan_pipeline(params: Params, given: Given, only: str | None = None) -> PipelinePlan:
    """Returns the plan of the whole pipeline, or of one run, as if every stage were to run."""
    shapes = {name: one.shape for name, one in given.models.items()}
    memory, card = estimate_memory(params, given), given.card or given.host
    machine = name_machine()
    calibration = read_calibration(given.store, machine)
    engines = _collect_engines(memory.rows)
    hours = HourEstimator(params, shapes, card, engines, calibration)
    storage = StorageEstimator(params, shapes, list_trained(params, shapes["student"]))
    counts = StoredCounts(given.root, given.store, params)
    sleeping = MemoryEstimator(params, shapes, card.memory).list_sleeping() if given.card else []
    stages = []
    for run, work in Workload(given.root, params, shapes, given.lengths).iter_all():
        if only not in (None, run):
            continue
        work = replace(work, answers=tuple(counts.fill(run, each) for each in work.answers))
        rows = [row for row in memory.rows if _belongs(row.stage, run, params)]
        gpus = len({gpu for row in rows for gpu in row.gpus}) if given.card else 0
        told = hours.estimate(run, work, read_past(given.root, run, machine))
        kept = storage.estimate(run, work, sleeping if run == LOOP else [])
        if given.card is None:
            kept = replace(kept, host=sum(row.total * len(row.gpus) for row in rows))
        stages.append(StagePlan(run, work, rows, kept, told, gpus, _price(work, told.hours.scale(gpus), given)))
    return PipelinePlan(stages, memory, card, given.models, machine if calibration else None, given.prices)


def plan_run(root: Path, store: Path, params: Params, run: str) -> dict[str, Any]:
    """Returns what one run will take on this machine, for the record beside what it takes.

    Raises ParamsError where that cannot be known: an unknown shape, GPUs without `runtime.gpus`.
    """
    gpus = read_gpus()
    card = min(gpus, key=lambda one: one.memory) if gpus else None
    plan = plan_pipeline(params, Given(root, store, find_models(root, params), card), only=run)
    one = plan.find(run)
    work, rows = one.work, [row.total for row in one.rows]
    return {
        "seconds": [3600 * one.hours.hours.low, 3600 * one.hours.hours.high],
        "seconds_from": one.hours.source,
        "step_flops": (work.flops.low + work.flops.high) / 2 / work.steps if work.steps else 0.0,
        "host_bytes": max(rows, default=0.0) if card is None else one.storage.host,
        "device_bytes": max(rows, default=0.0) if card is not None else 0.0,
        "out_bytes": [one.storage.out.low, one.storage.out.high],
        "answers": one.answers[1],
        "answers_exact": not any(each.upper for each in work.answers),
        "tokens_out": [
            sum(each.tokens_out.low for each in work.answers),
            sum(each.tokens_out.high for each in work.answers),
        ],
    }


def _price(work: StageWork, gpu_hours: Range, given: Given) -> Range | None:
    """What a stage costs at the prices that were given; None if the price of something that it uses was not."""
    total = Range()
    if gpu_hours.high:
        if given.prices.gpu_hour is None:
            return None
        total += gpu_hours.scale(given.prices.gpu_hour)
    for each in work.answers:
        if each.model not in given.models and each.fresh:
            if (price := given.prices.find(each.model)) is None:
                return None
            total += each.tokens_in.scale(price[0] / 1e6) + each.tokens_out.scale(price[1] / 1e6)
    return total


def _collect_engines(rows: Sequence[GpuMemory]) -> dict[tuple[str, str], EngineMemory]:
    return {(_find_stage(row.stage), name): engine for row in rows for name, engine in row.engines.items()}


def _find_stage(label: str) -> str:
    """The stage of a row: `teacher` of "teacher: qwen2_5_vl" and of "teacher@qwen2_5_vl"."""
    return label.partition(":")[0].partition("@")[0]


def _belongs(label: str, run: str, params: Params) -> bool:
    """Whether a row of the memory is of this run."""
    stage, _, item = run.partition("@")
    if label == run:
        return True
    if _find_stage(label) != stage or "@" in label:
        return False
    named = label.partition(": ")[2]
    if stage == "teacher":
        return named == item
    if stage == "evaluate":
        model = params.evaluations[item].checkpoint.removeprefix("data/model/")
        judged = params.evaluate.scoring == "rules_and_judge" and named == params.evaluate.judge
        return named == (model if model in params.models else "student") or judged
    return True
