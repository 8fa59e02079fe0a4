"""New weights for all servers of a model in training at once: directly, through files, or of its adapter alone."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from stages.engines.weight_file import (
    SaveAdapter,
    ServedAdapter,
    opening_storage,
    remove_leftovers,
    write_weights,
)

if TYPE_CHECKING:
    from torch import Tensor

    from stages.engines.weight_sender import WeightSender

_MORE_THAN_FILES = 1.25  # a tied head is not in the checkpoint, but among the weights that are sent: 8 % of 3B
# Sends one request to every server; returns the replies, raises EngineError if one is not 200.
Control = Callable[[str, str, Mapping[str, Any] | None], list[httpx.Response]]


def name_receiver() -> str:
    """Returns the name of the class whose methods vLLM's workers get."""
    from stages.engines.weight_receiver import WeightReceiver  # needs torch

    return f"{WeightReceiver.__module__}.{WeightReceiver.__qualname__}"


class ServerWeights:
    """Replaces what the servers behind `control` compute with."""

    def __init__(self, control: Control, scratch: Path, weights: Path, shared: Path | None) -> None:
        """`scratch` is the engine's own folder, `weights` the checkpoint that the servers have loaded.

        `shared` is a folder that all machines see, for servers with workers on several; files are then there.
        """
        self._control, self._scratch, self._shared = control, scratch, shared
        self._size = int(_MORE_THAN_FILES * sum(file.stat().st_size for file in weights.glob("*.safetensors")))
        self._sender: WeightSender | None = None
        self._adapter = ServedAdapter(scratch, shared)
        remove_leftovers(shared)

    def send_directly(self, named: "Iterable[tuple[str, Tensor]]") -> int:
        """Gives the workers of all servers new weights over a process group or shared memory; returns their bytes."""
        import torch

        from stages.engines.weight_sender import WeightSender

        if self._sender is None:
            device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
            self._sender = WeightSender(self._call_workers, self._scratch, torch.device(device))
        return self._sender.send(named)

    def send_files(self, named: "Iterable[tuple[str, Tensor]]") -> int:
        """Writes new weights to files, which all servers load at the same time; returns their bytes.

        The files are complete before a server is told of them, and removed afterwards.
        """
        with opening_storage(self._size, self._scratch, self._shared) as folder:
            content = write_weights(folder, named)
            self._ask_workers("reload_weights", {"weights_path": str(folder)})
        return content

    def send_adapter(self, save: SaveAdapter, size: int, name: str) -> int:
        """Makes every server load the adapter that `save` writes, in place of the one before; returns its bytes.

        Requests of model `name` are answered with it.
        """

        def load(folder: Path) -> None:
            if self._adapter.served:  # under a new number, so that nothing of the old one is found in a cache
                self._control("POST", "/v1/unload_lora_adapter", {"lora_name": name})
            self._control("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

        return self._adapter.replace(save, size, load)

    @property
    def serves_adapter(self) -> bool:
        """Whether an adapter was loaded."""
        return self._adapter.served

    def close(self) -> None:
        """Removes the adapter's files."""
        self._adapter.close()

    def _call_workers(self, call: Callable[..., Any], arguments: Mapping[str, Any]) -> list[list[Any]]:
        return self._ask_workers(call.__name__, arguments)

    def _ask_workers(self, method: str, arguments: Mapping[str, Any]) -> list[list[Any]]:
        replies = self._control("POST", "/collective_rpc", {"method": method, "kwargs": arguments})
        return [reply.json().get("results", []) for reply in replies]
