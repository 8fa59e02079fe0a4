"""The memory of each GPU in each stage, by part."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flows.estimate.engines import ASLEEP, EngineMemory, measure_engine
from flows.estimate.passes import (
    BF16,
    FP32,
    measure_frozen_tower,
    measure_head,
    measure_text,
    measure_tower,
)
from flows.estimate.shapes import ModelShape
from flows.estimate.trained import LIVE, WEIGHT, TrainedModel, find_sharding
from stages.config.lora import Lora
from stages.config.params import Params
from stages.config.placement import count_replica_gpus, find_gpu_use, find_rank_gpus, place_loop
from stages.config.yaml import ParamsError

CONTEXT = 1_000_000_000  # CUDA context, cuBLAS and NCCL. Assumed
FRAGMENTS = 0.05  # of what comes and goes in training: holes that PyTorch's allocator can't use. Assumed

# Columns of the tables, in order.
PARTS = (
    "libraries",
    "copies",
    "weights",
    "optimizer",
    "gradients",
    "buffers",
    "reference",
    "discriminator",
    "activations",
    "recomputation",
    "head",
    "vision",
    "engine weights",
    "engine work",
    "KV cache",
    "margin",
)


@dataclass(frozen=True)
class GpuMemory:
    """Bytes by part on GPUs with the same work, in the phase of the stage that needs most."""

    stage: str
    gpus: tuple[int, ...]
    phase: str
    parts: Mapping[str, float]
    engines: Mapping[str, EngineMemory]  # on these GPUs, by entry of `models`

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Shortfall:
    """What does not fit."""

    stage: str
    text: str
    lacking: float = 0.0  # bytes

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Estimate:
    """The memory of all stages on cards of `card` bytes."""

    card: float
    rows: Sequence[GpuMemory]
    shared: bool = False  # all processes share these bytes: the memory of a machine without GPUs

    def list_shortfalls(self) -> list[Shortfall]:
        """Returns a fault for each row that does not fit its card, and for each engine that could not start."""
        found = []
        for row in self.rows:
            count = len(row.gpus)
            needed = row.total * (count if self.shared else 1)
            where = f"{row.stage}, GPUs {format_gpus(row.gpus)}"
            has = f"the card has {self.card / 1e9:.1f}"
            if self.shared:
                where = row.stage + (f", {count} processes" if count > 1 else "")
                has = f"this machine has {self.card / 1e9:.1f}"
            if needed > self.card:
                found.append(
                    Shortfall(
                        row.stage,
                        f"{where}, {row.phase}: {needed / 1e9:.1f} GB are needed and {has}",
                        needed - self.card,
                    )
                )
            for name, engine in row.engines.items():
                if engine.cached_tokens < engine.context:
                    found.append(
                        Shortfall(
                            row.stage,
                            f"{where}: the KV cache of {name} holds {engine.cached_tokens} tokens, fewer than its "
                            f"context of {engine.context}",
                        )
                    )
        return found


class MemoryEstimator:
    """The memory of every stage on cards of `card` bytes."""

    def __init__(self, params: Params, shapes: Mapping[str, ModelShape], card: float) -> None:
        """`shapes` are those of the entries of `models` with weights.

        Raises ParamsError without `runtime.gpus`, and for a student in fp32, whose training on GPUs is not measured.
        """
        if not params.runtime.gpus:
            raise ParamsError("runtime.gpus is 0, so nobody knows who has which GPU; set it to their number")
        if params.models["student"].precision != "bf16":
            raise ParamsError(
                "models.student.precision is 'fp32', but the estimate for GPUs is for bf16; set it to bf16"
            )
        self._params, self._shapes, self._card = params, shapes, card
        self._runtime, self._student = params.runtime, shapes["student"]
        self._context = params.models["student"].context_tokens

    def estimate(self) -> Estimate:
        """Returns the rows of every stage that uses a GPU, in the order in which they run."""
        return Estimate(self._card, list(self._iter_rows()))

    def _iter_rows(self) -> Iterator[GpuMemory]:
        params = self._params
        yield from self._measure_warm_start()
        if params.selection.top:
            for name in (params.selection.teacher, "student"):
                yield from self._measure_answering("selection", name, name)
        for name, teacher in params.teachers.items():
            yield from self._measure_answering("teacher", name, teacher.model)
        yield from self._measure_answering("verdict", params.verdict.model, params.verdict.model)
        yield from self._measure_answering("rollout", "student", "student")
        if params.objective.uses_discriminator:
            yield from self._measure_discriminator()
        yield from self._measure_loop()
        evaluated = [one.checkpoint.removeprefix("data/model/") for one in params.evaluations.values()]
        judges = [params.evaluate.judge] if params.evaluate.benchmarks else []
        for name in dict.fromkeys([name if name in params.models else "student" for name in evaluated] + judges):
            yield from self._measure_answering("evaluate", name, name)

    # --- stages that answer -------------------------------------------------------------------------------------------

    def _measure_answering(self, stage: str, item: str, model: str) -> Iterator[GpuMemory]:
        use = find_gpu_use(self._runtime, stage, model)
        if use is None or model not in self._shapes:
            return
        size = count_replica_gpus(use)
        free = use.gpus or tuple(range(self._runtime.gpus))
        engine = self._measure_engine(stage, model)
        parts = {**_list_engine_parts(engine), "margin": CONTEXT}
        if stage == "selection":
            parts["head"] = self._measure_scoring(stage, model)
        yield GpuMemory(f"{stage}: {item}", free[: len(free) - len(free) % size], "answers", parts, {model: engine})

    def _measure_scoring(self, stage: str, model: str) -> float:
        """Bytes of log probabilities of all tokens of a prompt, beside the memory that vLLM reserves."""
        use = find_gpu_use(self._runtime, stage, model)
        assert use is not None
        text = self._shapes[model].text
        return self._params.models[model].context_tokens * text.vocabulary * (FP32 + FP32) / count_replica_gpus(use)

    def _measure_engine(self, stage: str, model: str) -> EngineMemory:
        use = find_gpu_use(self._runtime, stage, model)
        assert use is not None
        share = use.memory_share or self._runtime.gpu_memory_utilization
        return measure_engine(self._shapes[model], use, share, self._card, self._params.models[model])

    # --- stages that train --------------------------------------------------------------------------------------------

    def _make_model(self, stage: str, lora: Lora | None, whole: int, frozen: int) -> TrainedModel:
        """`whole` are the weights of the model, `frozen` those of them that full training leaves out."""
        sharding = find_sharding(self._runtime, stage, lora is not None)
        if lora:
            return TrainedModel(self._student.text.count_adapter(lora.rank, lora.targets), 0, sharding)
        return TrainedModel(whole - frozen, frozen, sharding)

    def _measure_warm_start(self) -> Iterator[GpuMemory]:
        block, student = self._params.warm_start, self._student
        if not block.steps:
            return
        frozen = student.tower_weights if block.freeze_vision else 0
        model = self._make_model("warm_start", block.lora, student.weights, frozen)
        resting = _list_resting(model, base=BF16 * student.weights if block.lora else 0.0)
        tokens = max(block.tokens_per_pack, self._context)
        vision: dict[str, float] = {}
        phases: dict[str, dict[str, float]] = {}
        if student.tower is not None and block.freeze_vision:
            vision = {"vision": tokens * student.text.hidden * BF16}
            phases["vision"] = {"vision": measure_frozen_tower(student.tower, tokens)}
        elif student.tower is not None:
            seen = measure_tower(student.tower, tokens, self._runtime.gradient_checkpointing)
            vision = {"vision": seen.kept}
            phases["backward of the tower"] = {
                **_list_backward(model),
                "vision": seen.kept,
                "recomputation": seen.working,
            }
        phases |= self._list_update(model, block.lora, tokens, vision)
        yield self._choose_row("warm_start", find_rank_gpus(self._runtime, "warm_start"), resting, phases)

    def _measure_discriminator(self) -> Iterator[GpuMemory]:
        block = self._params.discriminator
        model, base = self._make_discriminator("discriminator")
        resting = _list_resting(model, base)
        tokens = max(block.tokens_per_pack, self._context)
        phases = self._list_update(model, block.lora, tokens, self._list_seen(tokens), scored=0)
        yield self._choose_row("discriminator", find_rank_gpus(self._runtime, "discriminator"), resting, phases)

    def _list_seen(self, tokens: int) -> dict[str, float]:
        """The images that a discriminator sees, if it does."""
        if self._params.discriminator.sees != "question_and_image" or self._student.tower is None:
            return {}
        return {"vision": measure_frozen_tower(self._student.tower, tokens)}

    def _make_discriminator(self, stage: str) -> tuple[TrainedModel, float]:
        """The discriminator, and the bytes of the frozen model that its adapter belongs to."""
        block, student = self._params.discriminator, self._student
        tower = student.tower_weights if block.sees == "question_and_image" else 0
        model = self._make_model(stage, block.lora, student.text.weights + tower, tower)
        return model, BF16 * student.weights if block.lora else 0.0

    def _list_update(
        self,
        model: TrainedModel,
        lora: Lora | None,
        tokens: int,
        vision: Mapping[str, float],
        scored: int | None = None,
    ) -> dict[str, dict[str, float]]:
        """Phases of an update on packs of `tokens`, of which `scored` (all by default) are predicted by the head."""
        text, rank = self._student.text, lora.rank if lora else 0
        layers = measure_text(text, tokens, self._runtime.gradient_checkpointing, rank)
        passing = {**_list_backward(model), **vision, "activations": layers.kept}
        head = measure_head(text, tokens if scored is None else scored, trained=not lora)
        return {
            "backward of the head": {**passing, "head": head},
            "backward": {**passing, "recomputation": layers.working},
            "step": {"optimizer": model.step_bytes},
        }

    def _make_loop_models(self) -> list[TrainedModel]:
        """The student, and the discriminator if there is one."""
        block, student = self._params.ril, self._student
        frozen = student.tower_weights if block.freeze_vision else 0
        models = [self._make_model("ril", block.lora, student.weights, frozen)]
        return models + [self._make_discriminator("ril")[0]] * self._params.objective.uses_discriminator

    def _place_engines(self) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
        """GPUs of the ranks of the loop, and of each engine that runs here, by entry of `models`."""
        params, runtime = self._params, self._runtime
        judge = params.verdict.model if params.objective.asks_judge else None
        placement = place_loop(runtime, judge, runtime.gpus, params.distilled_models)
        return placement.ranks, {name: gpus for name, gpus in placement.engines.items() if name in self._shapes}

    def list_sleeping(self) -> list[EngineMemory]:
        """Returns the engines of the loop that keep their weights in host memory while the ranks compute."""
        uses = {name: find_gpu_use(self._runtime, "ril", name) for name in self._place_engines()[1]}
        sleepers = [name for name, use in uses.items() if use is not None and use.sharing == "sleep"]
        return [self._measure_engine("ril", name) for name in sleepers]

    def _measure_loop(self) -> Iterator[GpuMemory]:
        params, runtime, student = self._params, self._runtime, self._student
        block, (model, *others) = params.ril, self._make_loop_models()
        resting = _list_resting(model, base=0.0)
        # The reference is a model of its own, or the base of the student's adapter.
        reference = self._measure_reference()
        resting["weights" if block.lora else "reference"] += reference
        tokens = max(block.tokens_per_pack, self._context + 2 * block.group * block.sampling.max_tokens)
        questions = -(-block.questions_per_step // runtime.count_ranks("ril"))
        features = questions * self._context * student.text.hidden * BF16 if block.freeze_vision else 0
        phases: dict[str, dict[str, float]] = {}
        for other in others:
            resting["discriminator"] += sum(_list_resting(other, base=0.0).values())
            for phase, parts in self._list_update(
                other, params.discriminator.lora, tokens, self._list_seen(tokens), scored=0
            ).items():
                phases[f"discriminator, {phase}"] = parts
        if student.tower is not None:
            seen = measure_frozen_tower(student.tower, tokens)
            whole = BF16 * student.weights
            gathered = min(WEIGHT * LIVE, whole) if reference < whole else 0.0
            phases["reference"] = {"vision": seen + features, "buffers": gathered}
        for phase, parts in self._list_update(model, block.lora, tokens, {"vision": features}).items():
            phases[f"student, {phase}"] = parts
        ranks, placed = self._place_engines()
        for gpus in _group_gpus(ranks, placed):
            here = {name: self._measure_engine("ril", name) for name in placed if gpus[0] in placed[name]}
            yield self._place(gpus, gpus[0] in ranks, resting, phases, here)

    def _measure_reference(self) -> float:
        """Bytes of the frozen SFT student on each rank."""
        place, ranks = self._runtime.reference, self._runtime.count_ranks("ril")
        if place == "replicated" or (place == "sharded" and ranks == 1):
            return BF16 * self._student.weights
        return 0.0 if place == "offloaded" else BF16 * self._student.weights / ranks

    def _place(
        self,
        gpus: tuple[int, ...],
        trains: bool,
        resting: Mapping[str, float],
        phases: Mapping[str, Mapping[str, float]],
        engines: Mapping[str, EngineMemory],
    ) -> GpuMemory:
        """The row of GPUs of the loop: engines are awake while they answer, and may sleep while ranks compute."""
        scoring = [
            {"head": self._measure_scoring("ril", name)} for name in engines if name in self._params.distilled_models
        ]
        awake = _add_parts(*map(_list_engine_parts, engines.values()), *scoring)
        if not trains:
            return GpuMemory(
                "ril: engine of " + ", ".join(engines), gpus, "answers", {**awake, "margin": CONTEXT}, engines
            )
        asleep = []
        for name, engine in engines.items():
            use = find_gpu_use(self._runtime, "ril", name)
            sleeps = use is not None and use.sharing == "sleep"
            asleep.append({"engine work": float(ASLEEP)} if sleeps else _list_engine_parts(engine))
        found = {phase: _add_parts(parts, *asleep) for phase, parts in phases.items()}
        return self._choose_row("ril", gpus, resting, found | ({"answers": awake} if engines else {}), engines)

    def _choose_row(
        self,
        stage: str,
        gpus: tuple[int, ...],
        resting: Mapping[str, float],
        phases: Mapping[str, Mapping[str, float]],
        engines: Mapping[str, EngineMemory] | None = None,
    ) -> GpuMemory:
        """The phase with the largest sum; what comes and goes in training leaves holes."""
        rows = []
        for phase, parts in phases.items():
            moving = sum(value for part, value in parts.items() if part not in ("engine weights", "KV cache"))
            margin = {"margin": CONTEXT + FRAGMENTS * moving}
            rows.append(GpuMemory(stage, gpus, phase, _add_parts(resting, parts, margin), engines or {}))
        return max(rows, key=lambda row: row.total)


def _list_resting(model: TrainedModel, base: float) -> dict[str, float]:
    """Parts of a trained model between passes; `base` are the bytes of the frozen model beside an adapter."""
    return {
        "weights": base + model.weight_bytes,
        "optimizer": model.state_bytes,
        "gradients": model.resting_gradient_bytes,
        "buffers": model.resting_buffer_bytes,
        "reference": 0.0,
        "discriminator": 0.0,
    }


def _list_backward(model: TrainedModel) -> dict[str, float]:
    return {"gradients": model.gradient_bytes, "buffers": model.buffer_bytes}


def _list_engine_parts(engine: EngineMemory) -> dict[str, float]:
    return {"engine weights": engine.weights, "engine work": engine.work, "KV cache": engine.cache}


def _add_parts(*given: Mapping[str, float]) -> dict[str, float]:
    return {part: sum(parts.get(part, 0.0) for parts in given) for part in PARTS}


def _group_gpus(ranks: Sequence[int], engines: Mapping[str, Sequence[int]]) -> list[tuple[int, ...]]:
    """Returns the GPUs of the loop, those with the same ranks and engines together."""
    found: dict[tuple[object, ...], list[int]] = {}
    for gpu in sorted({*ranks, *(gpu for gpus in engines.values() for gpu in gpus)}):
        work = (gpu in ranks, *(gpu in gpus for gpus in engines.values()))
        found.setdefault(work, []).append(gpu)
    return [tuple(gpus) for gpus in found.values()]


def format_gpus(gpus: Sequence[int]) -> str:
    """Returns consecutive numbers as ranges: 0, 2-7."""
    runs: list[list[int]] = []
    for gpu in gpus:
        if runs and gpu == runs[-1][-1] + 1:
            runs[-1].append(gpu)
        else:
            runs.append([gpu])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
