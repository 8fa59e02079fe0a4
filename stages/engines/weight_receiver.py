"""The side of vLLM: methods that its workers get (`--worker-extension-cls`) to receive new weights.

The stage calls them through `/collective_rpc`, each on all workers of an engine at the same time. A worker on the
sender's device reads the sender's buffer; the others are in a process group with the sender. Every worker gets whole
tensors and keeps its own part of them (tensor parallelism), as when it loads a checkpoint.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stages.engines.weight_buckets import unpack
from stages.engines.weight_group import (
    broadcast_from_first,
    free_buffers,
    name_device,
    open_buffer,
    open_group,
    synchronize,
)


class WeightReceiver:
    """What is added to vLLM's worker; `rank`, `device`, `vllm_config` and `model_runner` are the worker's own."""

    rank: int
    device: torch.device
    vllm_config: Any
    model_runner: Any
    _sender_group: Any = None

    @property
    def _receiver_name(self) -> str:
        return f"{os.getpid()}-{self.rank}"  # of one worker among those of all engines of this machine

    def locate_receiver(self) -> list[str]:
        """Returns a name of the worker, and that of its device."""
        return [self._receiver_name, name_device(self.device)]

    def join_sender(self, store: str, places: Mapping[str, int], size: int) -> None:
        """Joins the sender's group if `places` has a number for this worker."""
        if place := places.get(self._receiver_name):
            self._sender_group = open_group(self.device, Path(store), place, size)

    def begin_weights(self) -> None:
        """Prepares the model for new weights of every layer."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(self.model_runner.get_model())

    def receive_bucket(self, slots: Sequence[Any], size: int, buffers: Mapping[str, Any]) -> None:
        """Loads the tensors of one bucket of `size` bytes; `buffers` describes the sender's to each worker beside it.

        The copy is needed: vLLM keeps the tensors of a layer until it has them all, and the sender uses its buffer
        again.
        """
        from vllm.config import set_current_vllm_config
        from vllm.utils.nccl import unpinned_nccl_env

        if self._sender_group is None:
            sent = open_buffer(buffers[self._receiver_name], self.device)
            whole = sent[:size].clone()
            synchronize(self.device)
            del sent
        else:
            whole = torch.empty(size, dtype=torch.uint8, device=self.device)
            with unpinned_nccl_env():  # vLLM may set variables for its own groups that the sender does not have
                broadcast_from_first(self._sender_group, whole)
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.get_model().load_weights(unpack(whole, slots))
        synchronize(self.device)

    def end_weights(self) -> None:
        """Finishes the layers, and drops what was computed with the old weights."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(self.model_runner.get_model(), self.vllm_config.model_config)
        self.model_runner.reset_lora_state()
        self.model_runner.reset_encoder_cache()
        self.model_runner.reset_mm_cache()
        synchronize(self.device)
        free_buffers(self.device)
