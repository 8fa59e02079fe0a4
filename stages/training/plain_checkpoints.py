"""Reads and writes the files of DeepSpeed's checkpoints without running code that somebody put into them.

DeepSpeed loads its checkpoints as unrestricted pickles. Here torch's own restricted reader loads them: tensors, plain
values and the few classes that DeepSpeed saves. Anything else ends with a message.
"""

import pickle  # nosec B403: for the name of its error
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from stages.job.failure import Failure

SAVED_CLASSES = (LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address)


class PlainCheckpointEngine(TorchCheckpointEngine):  # type: ignore[misc]
    """Loads with `weights_only=True`."""

    def load(self, path: str, map_location: Any = None) -> Any:
        """Returns the content of the file; raises Failure when it is damaged or holds more than a training state."""
        with torch.serialization.safe_globals([*SAVED_CLASSES]):
            try:
                return torch.load(path, map_location=map_location, weights_only=True)
            except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
                reason = " ".join(str(error).split("\n")[0].split())[:200]
                raise Failure(
                    f"{path} is no training state that this project wrote, or it is damaged, and is not loaded: "
                    f"{reason}; delete its folder, or set RIL_FRESH=1 to restart"
                ) from error
