"""Host memory beside GPUs, and disk, that each stage takes, by calculation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flows.estimate.amounts import Range
from flows.estimate.engines import EngineMemory
from flows.estimate.passes import BF16, FP32
from flows.estimate.shapes import ModelShape
from flows.estimate.trained import STATE
from flows.estimate.workload import StageWork
from stages.config.params import Params
from stages.config.placement import LOOP, count_replica_gpus, find_gpu_use

DISK_RATE = 2e9  # bytes a second that a checkpoint is written at; that of one NVMe disk
PROCESS = 3_000_000_000  # libraries and rows of a training process. Measured on a CPU: 0.6 to 1.2 GB. CUDA's: assumed
# Bytes of an answer, compressed: of its row, and of each of its tokens. Measured: low for the alike answers of the tiny
# world, high for answers that are drawn token by token (docs/profiles.md, "Predicted against measured").
STORED_ROW, STORED_TOKEN = Range(45, 60), Range(0.6, 3.3)
WRITTEN_ROW, WRITTEN_TOKEN = Range(45, 65), Range(0.8, 3.0)
VERDICT_ROW = Range(25, 85)  # a verdict without its text
SEGMENT = 10e3  # of the store: the description of its columns, about.json
QUESTION = Range(40e3, 500e3)  # bytes of a question with its image. Assumed; of the tiny world 3 kB
TINY_QUESTION = Range(2.5e3, 4.5e3)
FILES = 25_000  # tokenizer, config and card beside tiny weights


@dataclass(frozen=True)
class Storage:
    """Bytes of one stage."""

    host: float = 0.0  # memory of the machine, beside GPUs
    out: Range = field(default_factory=Range)  # in data/
    store: Range = field(default_factory=Range)  # new answers
    checkpoint: float = 0.0  # one training state
    checkpoints: float = 0.0  # all that are on disk at a time
    download: float = 0.0  # in the hub's cache

    @property
    def seconds(self) -> float:
        """Seconds that one training state takes to write."""
        return self.checkpoint / DISK_RATE

    @property
    def kept(self) -> Range:
        """What stays when the stage is done; training states go."""
        return self.out + self.store + Range.exactly(self.download)

    @property
    def disk(self) -> Range:
        """What the stage needs while it runs."""
        return self.kept + Range.exactly(self.checkpoints)


class StorageEstimator:
    """Host memory and disk of every run."""

    def __init__(self, params: Params, shapes: Mapping[str, ModelShape], trained: Mapping[str, list[int]]) -> None:
        """`trained` are the trained weights of the models of each training stage."""
        self._params, self._shapes, self._trained = params, shapes, trained
        self._student = shapes["student"]

    def estimate(self, run: str, work: StageWork, sleeping: list[EngineMemory]) -> Storage:
        """Returns the bytes of `run`; `sleeping` are engines that keep their weights in host memory meanwhile."""
        stage, _, item = run.partition("@")
        checkpoint, kept = self._estimate_checkpoints(stage)
        stored = work.answers if stage != LOOP else ()  # the loop keeps its own in its records
        store = _add(
            Range.exactly(SEGMENT) + (each.answer.times(STORED_TOKEN) + STORED_ROW).scale(each.fresh)
            for each in stored
            if each.fresh
        )
        return Storage(
            self._estimate_host(stage, checkpoint, sleeping),
            self._estimate_out(stage, item, work),
            store,
            checkpoint,
            kept,
            self._count_download(item) if stage == "model" else 0.0,
        )

    def count_bytes(self, name: str) -> float:
        """Returns the bytes of a model's weights in its precision."""
        return (BF16 if self._params.models[name].precision == "bf16" else FP32) * self._shapes[name].weights

    def _estimate_checkpoints(self, stage: str) -> tuple[float, float]:
        """Bytes of one training state, and of those that are on disk: kept ones and the one being written."""
        one = float(STATE * sum(self._trained.get(stage, [])))
        best = self.count_bytes("student") if stage == LOOP and self._params.ril.keep != "last" else 0.0
        return one, one * (self._params.runtime.keep_checkpoints + 1) + best

    def _estimate_host(self, stage: str, checkpoint: float, sleeping: list[EngineMemory]) -> float:
        """A checkpoint that is loaded is a mapped file, which takes no memory of its own.

        While a training state is written, host memory has a copy of it. Page-locked memory may take up to twice its
        size, since torch rounds blocks up.
        """
        runtime = self._params.runtime
        if stage not in self._trained:
            servers = 0
            for name in self._params.models:
                use = find_gpu_use(runtime, stage, name)
                if use is not None and stage in ("selection", "teacher", "verdict", "rollout", "evaluate"):
                    servers = max(servers, len(use.gpus or range(runtime.gpus)) // count_replica_gpus(use))
            return float(PROCESS * (1 + servers))
        hosted = {"resident": 0, "swapped": STATE, "offloaded": STATE + FP32}[runtime.optimizer_states]
        states = float(hosted * sum(self._trained[stage]))
        loop = stage == LOOP
        reference = BF16 * self._student.weights if loop and runtime.reference == "offloaded" else 0
        asleep = sum(engine.weights for engine in sleeping)
        return runtime.count_ranks(stage) * PROCESS + states + reference + checkpoint + asleep

    def _estimate_out(self, stage: str, item: str, work: StageWork) -> Range:
        params = self._params
        if stage == "model":
            built = params.models[item].build is not None
            return Range.exactly(self.count_bytes(item) + FILES if built else 1000)
        if stage == "questions":
            world = params.questions.kind == "world"
            count = sum(one for one in params.questions.splits.values() if one != "all")
            return (TINY_QUESTION if world else QUESTION).scale(count)
        whole = Range.exactly(self.count_bytes("student") + FILES)
        if stage == "warm_start":
            return whole + (self._count_adapter(stage) or Range())
        if stage == "discriminator" and params.objective.uses_discriminator:
            text = self._student.text  # without a head, with a score of each state
            return self._count_adapter(stage) or Range.exactly(self._size * (text.weights + text.hidden))
        if stage == LOOP:
            return whole.scale(1 + (params.ril.keep == "both")) + (self._count_adapter(stage) or Range())
        if stage == "verdict":
            return _add(VERDICT_ROW.scale(each.count) for each in work.answers)
        return _add((each.answer.times(WRITTEN_TOKEN) + WRITTEN_ROW).scale(each.count) for each in work.answers)

    @property
    def _size(self) -> int:
        """Bytes of a weight of the student."""
        return FP32 if self._params.models["student"].precision == "fp32" else BF16

    def _count_adapter(self, stage: str) -> Range | None:
        """The bytes of a stage's adapter; None if it trains all weights."""
        lora = getattr(self._params, stage).lora
        if lora is None:
            return None
        return Range.exactly(self._size * self._student.text.count_adapter(lora.rank, lora.targets))

    def _count_download(self, name: str) -> float:
        return float(BF16 * self._shapes[name].weights) if self._params.models[name].hub else 0.0


def _add(ranges: Iterable[Range]) -> Range:
    total = Range()
    for one in ranges:
        total += one
    return total
