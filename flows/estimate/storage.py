"""Host memory and disk that training takes, by calculation."""

from dataclasses import dataclass

from flows.estimate.engines import EngineMemory
from flows.estimate.passes import BF16, FP32
from flows.estimate.shapes import ModelShape
from flows.estimate.trained import STATE, TrainedModel
from stages.config.params import Params

DISK_RATE = 2e9  # bytes a second that a checkpoint is written at; that of one NVMe disk
PROCESS = 3_000_000_000  # libraries and rows of a training process. Measured on a CPU: 0.6 to 1.2 GB. CUDA's: assumed


@dataclass(frozen=True)
class Storage:
    """Bytes of the loop, the stage that takes most."""

    host: float  # memory of the machine
    checkpoint: float  # one training state
    disk: float  # all that are kept, the one being written, and the models that the stages write

    @property
    def seconds(self) -> float:
        """Seconds that one training state takes to write."""
        return self.checkpoint / DISK_RATE


def estimate_storage(
    params: Params, student: ModelShape, trained: list[TrainedModel], sleeping: list[EngineMemory]
) -> Storage:
    """Returns host memory and disk of the loop; `trained` are its models on one rank, `sleeping` engines that sleep.

    A checkpoint that is loaded is a mapped file, which takes no memory of its own. While a training state is written,
    host memory has a copy of it. Page-locked memory may take up to twice its size, since torch rounds blocks up.
    """
    runtime, ranks = params.runtime, params.runtime.count_ranks("ril")
    hosted = {"resident": 0, "swapped": STATE, "offloaded": STATE + FP32}[runtime.optimizer_states]
    states = float(sum(hosted * model.trained for model in trained))
    reference = BF16 * student.weights if runtime.reference == "offloaded" else 0
    asleep = sum(engine.weights for engine in sleeping)
    checkpoint = float(sum(STATE * model.trained for model in trained))
    written = BF16 * student.weights * (2 + (params.ril.keep == "both"))  # data/warm_start, data/ril
    disk = checkpoint * (runtime.keep_checkpoints + 1) + written
    return Storage(ranks * PROCESS + states + reference + checkpoint + asleep, checkpoint, disk)
