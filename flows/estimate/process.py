"""Memory of each stage's processes on a machine without GPUs, where everything is in host memory.

A process has its libraries, the weights of its models, states, gradients and passes of what it trains, and its engines.
On a CPU memory that is allocated and not written takes no page, so a bucket counts as far as there are weights to fill
it; buckets fill while activations are freed, so the larger of both counts.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flows.estimate.passes import FP32, measure_frozen_tower, measure_head, measure_text, measure_tower
from flows.estimate.shapes import ModelShape
from flows.estimate.table import Estimate, GpuMemory
from flows.estimate.trained import BUCKET, STATE, TrainedModel, find_sharding, list_trained
from flows.jobs import list_runs
from stages.config.engines import Vllm
from stages.config.lora import Lora
from stages.config.params import Params
from stages.config.placement import LOOP
from stages.config.runtime import Runtime

# Memory of a process before it has a model, in bytes. Measured (docs/profiles.md, "Predicted against measured").
TRAINING_LIBRARIES = 660e6  # torch, transformers, deepspeed, pyarrow
ADAPTER_LIBRARIES = 61e6  # and peft
ENGINE_LIBRARIES = 865e6  # and vLLM
PLAIN_LIBRARIES = 165e6  # pyarrow, numpy
QUESTION_LIBRARIES = {True: 255e6, False: 600e6}  # and the tiny world; images of any size, decoded on all cores
REPORT_LIBRARIES = 660e6  # and torch, matplotlib
PROMPT_SHARE = 0.25  # of the context: a prompt whose mean length is not known. Assumed
WAITING = 1.25  # requests in an engine for each that it answers (stages/engines/vllm.py)
GIB = 1 << 30


class ProcessEstimator:
    """The memory of the processes of every stage on a CPU with `memory` bytes."""

    def __init__(
        self, params: Params, shapes: Mapping[str, ModelShape], memory: float, prompt: float | None = None
    ) -> None:
        """`prompt` is the mean length of prompts in tokens, if it is known."""
        self._params, self._shapes, self._memory, self._prompt = params, shapes, memory, prompt
        self._runtime, self._student = params.runtime, shapes["student"]
        self._context = params.models["student"].context_tokens

    def estimate(self) -> Estimate:
        """Returns a row for each run of the pipeline."""
        return Estimate(self._memory, list(self._iter_rows()), shared=True)

    def _iter_rows(self) -> Iterator[GpuMemory]:
        for run in list_runs(self._params):
            stage, _, item = run.partition("@")
            yield GpuMemory(run, self._list_ranks(stage), *self._measure(stage, item), {})

    def _list_ranks(self, stage: str) -> tuple[int, ...]:
        ranks = stage in ("warm_start", "discriminator", "ril")
        return tuple(range(self._runtime.count_ranks(stage) if ranks else 1))

    def _measure(self, stage: str, item: str) -> tuple[str, dict[str, float]]:
        params = self._params
        if stage == "model":
            return self._measure_build(item)
        if stage == "warm_start":
            return self._measure_warm_start()
        if stage == "discriminator" and params.objective.uses_discriminator:
            return self._measure_discriminator()
        if stage == "ril":
            return self._measure_loop()
        models = {
            "teacher": [params.teachers[item].model] if stage == "teacher" else [],
            "verdict": [params.verdict.model],
            "rollout": ["student"],
            "selection": [params.selection.teacher, "student"] if params.selection.top else [],
        }
        if stage == "evaluate":
            name = params.evaluations[item].checkpoint.removeprefix("data/model/")
            models["evaluate"] = [name if name in params.models else "student"]
        asked = [name for name in models.get(stage, []) if name in self._shapes]
        if not asked:
            libraries = {"report": REPORT_LIBRARIES, "questions": QUESTION_LIBRARIES[params.questions.kind == "world"]}
            return "work", {"libraries": libraries.get(stage, PLAIN_LIBRARIES)}
        largest = max(asked, key=lambda name: self._count_bytes(name))
        each = params.teachers[item].responses if stage == "teacher" else 1
        if stage == "rollout":
            each = params.rollout.responses
        return "answers", {"libraries": ENGINE_LIBRARIES, **self._measure_engine(stage, largest, each)}

    def _count_bytes(self, name: str) -> float:
        return (4 if self._params.models[name].precision == "fp32" else 2) * self._shapes[name].weights

    def _measure_engine(self, stage: str, name: str, each: int) -> dict[str, float]:
        """Bytes of vLLM in this process, which gives `each` answers to a prompt.

        Its buffer of states has room for all prompts at once. In the first pass it reads those that it starts with.
        """
        engine, text = self._runtime.find_engine(stage, name), self._shapes[name].text
        sequences = engine.sequences if isinstance(engine, Vllm) else Vllm(kind="vllm").sequences
        size = self._count_bytes(name) / self._shapes[name].weights
        context = self._params.models[name].context_tokens
        prompts = min(self._count_prompts(stage), sequences * WAITING / each)
        first = prompts * min(context, self._prompt or context * PROMPT_SHARE)
        work = size * (sequences * context * text.hidden + first * (4 * text.hidden + 3 * text.feed_forward))
        return {
            "engine weights": self._count_bytes(name),
            "engine work": work,
            "KV cache": float(self._runtime.kv_cache_gib * GIB),
        }

    def _count_prompts(self, stage: str) -> float:
        """Returns how many prompts a stage has at a time, at most."""
        params = self._params
        if stage == LOOP:
            return params.ril.questions_per_step * params.ril.group
        split = {"selection": params.selection.split, "evaluate": params.evaluate.split}.get(stage)
        count = params.questions.splits[split or params.selection.split]
        if count == "all":
            return math.inf
        # Half of what a judge reads is the same for all, which the engine reads once.
        each = max((one.responses for one in params.teachers.values()), default=1) / 2 if stage == "verdict" else 1
        return count * each

    # --- stages that train --------------------------------------------------------------------------------------------

    def _measure_build(self, name: str) -> tuple[str, dict[str, float]]:
        model = self._params.models[name]
        if model.build is None:
            if name not in self._shapes:
                return "work", {"libraries": PLAIN_LIBRARIES}
            verified = (
                4.0 * self._shapes[name].weights * model.verified
            )  # in full precision, one engine after the other
            return "verification", {"libraries": ENGINE_LIBRARIES, "engine weights": verified}
        shape, tokens = self._shapes[name], model.build.tokens_per_pack
        tower = 0 if shape.tower is None else measure_tower(shape.tower, tokens // 2, recompute=False).kept
        passes = 2.0 * (measure_text(shape.text, tokens, recompute=False).kept + tower)
        return "training", {
            "libraries": TRAINING_LIBRARIES,
            "weights": 4.0 * shape.weights,
            "optimizer": 8.0 * shape.weights,
            "gradients": 4.0 * shape.weights,
            "activations": passes,
        }

    def _measure_warm_start(self) -> tuple[str, dict[str, float]]:
        block, student = self._params.warm_start, self._student
        if not block.steps:
            return "work", {"libraries": TRAINING_LIBRARIES, "weights": self._count_bytes("student")}
        tokens = max(block.tokens_per_pack, self._context)
        seen = self._measure_tower(tokens, trained=not block.freeze_vision)
        trained = student.weights - (student.tower_weights if block.freeze_vision else 0)
        phases = self._list_phases("warm_start", block.lora, (trained, student.weights), tokens, seen, head=True)
        resting = {"libraries": _count_libraries(block.lora), "copies": self._count_copies("warm_start")}
        return self._choose(resting, phases)

    def _measure_discriminator(self) -> tuple[str, dict[str, float]]:
        block, student = self._params.discriminator, self._student
        sees = block.sees == "question_and_image"
        tokens = max(block.tokens_per_pack, self._context)
        seen = self._measure_tower(tokens, trained=False) if sees else 0.0
        whole = student.weights if block.lora or sees else student.text.weights
        phases = self._list_phases("discriminator", block.lora, (student.text.weights, whole), tokens, seen, head=False)
        resting = {"libraries": _count_libraries(block.lora), "copies": self._count_copies("discriminator")}
        return self._choose(resting, phases)

    def _measure_loop(self) -> tuple[str, dict[str, float]]:
        params, student, runtime = self._params, self._student, self._runtime
        block, ranks = params.ril, runtime.count_ranks(LOOP)
        tokens = max(block.tokens_per_pack, self._context + 2 * block.group * block.sampling.max_tokens)
        seen = self._measure_tower(tokens, trained=not block.freeze_vision)
        trained = student.weights - (student.tower_weights if block.freeze_vision else 0)
        phases = self._list_phases(LOOP, block.lora, (trained, student.weights), tokens, seen, head=True)
        reference = 0.0 if block.lora else self._count_bytes("student")
        if runtime.reference != "replicated":
            reference /= ranks
        libraries = _count_libraries(block.lora or params.discriminator.lora)
        resting = {"libraries": libraries, "copies": self._count_copies(LOOP), "reference": reference}
        if params.objective.uses_discriminator:
            of = params.discriminator
            whole = 0 if of.lora else student.text.weights  # an adapter shares the reference
            other = self._list_phases(LOOP, of.lora, (student.text.weights, whole), tokens, 0.0, head=False)
            resting["discriminator"] = sum(other["at rest"].values())
            for phase in ("passes", "update"):
                moved = {"discriminator": sum(other[phase].values()) - resting["discriminator"]}
                phases[f"discriminator, {phase}"] = {**phases["at rest"], **moved}
        names = ["student"] + ([params.verdict.model] if params.objective.asks_judge else [])
        names += params.distilled_models
        here = [name for name in names if name in self._shapes]
        if ranks == 1:  # else they are servers, processes of their own
            resting["libraries"] = ENGINE_LIBRARIES + libraries - TRAINING_LIBRARIES
            for name in here:
                each = block.group if name == "student" else 1
                for part, size in self._measure_engine(LOOP, name, each).items():
                    resting[part] = resting.get(part, 0.0) + size
        return self._choose(resting, phases)

    def _count_copies(self, stage: str) -> float:
        """The copy of the training state that is written beside the next steps, where each step writes one.

        A run that lasts longer than `runtime.checkpoint_minutes` has it, too; how long it lasts is not known here.
        """
        if self._runtime.checkpoint_minutes:
            return 0.0
        return STATE * sum(list_trained(self._params, self._student)[stage]) / self._runtime.count_ranks(stage)

    def _measure_tower(self, tokens: int, trained: bool) -> float:
        tower = self._student.tower
        if tower is None:
            return 0.0
        wide = 2.0 if self._params.models["student"].precision == "fp32" else 1.0
        if not trained:
            return wide * measure_frozen_tower(tower, tokens // 2)
        return wide * measure_tower(tower, tokens // 2, self._runtime.gradient_checkpointing).kept

    def _list_phases(
        self, stage: str, lora: Lora | None, weights: tuple[int, int], tokens: int, seen: float, head: bool
    ) -> dict[str, dict[str, float]]:
        """Parts of a trained model at rest, in passes and in the update; of `weights`, those trained whole, and all."""
        trained, whole = weights
        text, runtime = self._student.text, self._runtime
        precision = self._params.models["student"].precision
        if lora:
            trained, rank = text.count_adapter(lora.rank, lora.targets), lora.rank
        else:
            rank = 0
        wide = 2.0 if precision == "fp32" else 1.0
        frozen = whole - (0 if lora else trained)
        layers = measure_text(text, tokens, runtime.gradient_checkpointing, rank)
        scored = measure_head(text, tokens, trained=not lora) if head else 0
        kept = wide * (layers.kept + max(layers.working, scored)) + seen
        parts = list_states(runtime, stage, precision, trained, max(0, frozen), lora is not None)
        merges = lora is not None and head  # the result of the student has the adapter in a copy of all weights
        return {
            "at rest": parts.resting,
            **({"result": {**parts.resting, "copies": self._count_bytes("student")}} if merges else {}),
            "passes": {
                **parts.resting,
                "gradients": parts.gradients,
                "activations": max(kept, parts.buffers),
            },
            "update": {
                **parts.resting,
                "gradients": parts.kept_gradients,
                "optimizer": parts.resting["optimizer"] + parts.update,
            },
        }

    @staticmethod
    def _choose(
        resting: Mapping[str, float], phases: Mapping[str, Mapping[str, float]]
    ) -> tuple[str, dict[str, float]]:
        phase = max(phases, key=lambda name: sum(phases[name].values()))
        keys = dict.fromkeys([*resting, *phases[phase]])
        return phase, {key: resting.get(key, 0.0) + phases[phase].get(key, 0.0) for key in keys}


@dataclass(frozen=True)
class States:
    """Bytes of one process beside activations."""

    resting: dict[str, float]
    gradients: float  # in the passes
    buffers: float  # full at the end of the passes
    kept_gradients: float  # in the update
    update: float


def list_states(runtime: Runtime, stage: str, precision: str, trained: int, frozen: int, adapter: bool) -> States:
    """Returns the states of a model of which `trained` weights are trained and `frozen` are not."""
    sharding = find_sharding(runtime, stage, adapter)
    if precision == "bf16":
        bucket = min(sharding.bucket, trained)
        model = TrainedModel(trained, frozen, sharding)
        gathered = min(sharding.live, trained + frozen) if sharding.zero_stage == 3 else bucket
        resting = {"weights": model.weight_bytes, "optimizer": model.state_bytes}
        resting["gradients"] = model.resting_gradient_bytes
        resting["buffers"] = 2.0 * bucket if sharding.zero_stage == 3 else 0.0
        return States(
            resting,
            model.resting_gradient_bytes + model.gradient_bytes,
            2.0 * (gathered + bucket),
            model.resting_gradient_bytes,
            model.step_bytes,
        )
    return _list_fp32_states(runtime, stage, trained, frozen, adapter)


def _list_fp32_states(runtime: Runtime, stage: str, trained: int, frozen: int, adapter: bool) -> States:
    """ZeRO 0 is AdamW of PyTorch; with ZeRO a flat copy of a rank's weights is updated and copied back."""
    ranks = runtime.count_ranks(stage)
    shards = ranks > 1 and not adapter
    zero = runtime.zero_stage if shards else min(runtime.zero_stage, 2)
    whole = FP32 * float(trained)
    held = FP32 * float(trained + frozen)
    if zero == 0:
        return States({"weights": held, "optimizer": 2 * whole}, whole, 0.0, whole, whole)
    part, bucket = (
        whole / ranks,
        FP32 * float(min(runtime.deepspeed.zero_optimization.reduce_bucket_size or BUCKET, trained)),
    )
    if zero == 3:
        resting = {"weights": held / ranks, "optimizer": 3 * part, "gradients": part, "buffers": bucket}
        return States(resting, part, held + bucket, part, 2 * part)
    if zero == 1:  # the update has no second bucket and no second copy of the gradients
        return States({"weights": held, "optimizer": 3 * part}, whole, bucket, part, part)
    return States({"weights": held, "optimizer": 3 * part}, part, 2 * bucket, part, 2 * part)


def _count_libraries(lora: Lora | None) -> float:
    """Memory of a process that trains before it has a model, in bytes."""
    return TRAINING_LIBRARIES + (ADAPTER_LIBRARIES if lora else 0.0)
