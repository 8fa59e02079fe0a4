"""Seconds and bytes of new weights on their way to an engine, with the tensors of Qwen2.5-VL-7B.

    python -m tests.performance.weights_to_engine [--share 0.25] [--replicas 1 2]

Tensors have the real names, shapes and dtype (bf16). The layers of the language model and of the tower are cut to a
share: the whole 16.6 GB fit neither twice in the memory of a small machine nor for long on its disk. Equal shapes share
one tensor of random values, so the trained model takes 1.4 GB. A replica is a process that takes in every tensor with a
copy, as an engine does when it loads a parameter; vLLM's own work on top is the same for all ways.

Ways: `old` (one file on the disk with fsync, replicas one after the other: up to version 0.1.0), `disk` and `memory`
(files without fsync), `shared` (a buffer that the replicas open: CUDA IPC on a GPU), `gloo` (NCCL on GPUs).
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stages.engines import weight_file, weight_sender
from stages.engines.weight_file import opening_storage, write_weights
from stages.engines.weight_receiver import WeightReceiver
from stages.engines.weight_sender import WeightSender

VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
Named = Iterator[tuple[str, torch.Tensor]]


def list_shapes(share: float) -> dict[str, torch.Size]:
    """Name and shape of each tensor of the model with a share of its layers."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = VISION | {"depth": max(1, round(VISION["depth"] * share))}
    text = TEXT | {"num_hidden_layers": max(1, round(TEXT["num_hidden_layers"] * share))}
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)
        )
    return {name: one.shape for name, one in model.state_dict().items()}


class Scratch:
    """Stands for the parameters of an engine: copies every tensor that it gets."""

    def __init__(self) -> None:
        self._places: dict[torch.Size, torch.Tensor] = {}
        self.content = 0

    def load_weights(self, named: Any) -> None:
        for _, tensor in named:
            self._places.setdefault(tensor.shape, torch.empty_like(tensor)).copy_(tensor)
            self.content += tensor.nbytes


class Replica(WeightReceiver):
    """A worker of vLLM, but for its model."""

    def __init__(self, rank: int) -> None:
        self.rank, self.device, self.vllm_config = rank, torch.device("cpu"), types.SimpleNamespace(model_config=None)
        self.model = Scratch()
        resets = dict.fromkeys(("reset_lora_state", "reset_encoder_cache", "reset_mm_cache"), lambda: None)
        self.model_runner = types.SimpleNamespace(get_model=lambda: self.model, **resets)

    def reload_weights(self, weights_path: str) -> None:
        """Reads files as vLLM's loader does, mapped into memory."""
        for file in sorted(Path(weights_path).glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                self.model.load_weights((name, opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118

    def count_work(self) -> list[float]:
        """The bytes that it has taken in, and the seconds of a core that it has worked."""
        return [self.model.content, time.process_time()]


def serve(rank: int, pipe: Any) -> None:
    """Answers calls until there are none."""
    torch.set_num_threads(1)
    nothing: Any = types.SimpleNamespace(
        initialize_layerwise_reload=lambda _: None, finalize_layerwise_reload=lambda *_: None
    )
    sys.modules["vllm.config"] = types.SimpleNamespace(set_current_vllm_config=lambda _: nullcontext())  # type: ignore[assignment]
    sys.modules["vllm.model_executor.model_loader.reload"] = nothing
    sys.modules["vllm.utils.nccl"] = types.SimpleNamespace(unpinned_nccl_env=nullcontext)  # type: ignore[assignment]
    replica = Replica(rank)
    while (call := pipe.recv()) is not None:
        method, arguments = json.loads(call)
        pipe.send(getattr(replica, method)(**arguments))


class Replicas:
    """Processes that receive weights."""

    def __init__(self, count: int) -> None:
        context = get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(count):
            here, there = context.Pipe()
            self._processes.append(context.Process(target=serve, args=(rank, there)))
            self._pipes.append(here)
            self._processes[-1].start()
        self._before = self.count_work()  # all have started

    def ask(self, method: str, arguments: Mapping[str, Any]) -> list[list[Any]]:
        with ThreadPoolExecutor(len(self._pipes)) as threads:
            return list(threads.map(lambda pipe: [self._call(pipe, method, arguments)], self._pipes))

    def count_work(self) -> list[list[float]]:
        """What each replica has taken in, and its seconds of work."""
        return [found for (found,) in self.ask("count_work", {})]

    def add_up(self) -> tuple[list[float], float]:
        """The bytes of each replica, and the seconds of work of all since they have started."""
        now = self.count_work()
        return [one[0] for one in now], sum(one[1] for one in now) - sum(one[1] for one in self._before)

    def ask_for(self, call: Callable[..., Any], arguments: Mapping[str, Any]) -> list[list[Any]]:
        return self.ask(call.__name__, arguments)

    def ask_in_turn(self, method: str, arguments: Mapping[str, Any]) -> None:
        for pipe in self._pipes:
            self._call(pipe, method, arguments)

    def _call(self, pipe: Any, method: str, arguments: Mapping[str, Any]) -> Any:
        pipe.send(json.dumps([method, arguments]))
        return pipe.recv()

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()


def send_as_before(replicas: Replicas, named: Named) -> None:
    """One file with all tensors, fsync, one replica after the other."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file(dict(named), file)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        replicas.ask_in_turn("reload_weights", {"weights_path": folder})


def send_files(memory: bool) -> Callable[[Replicas, Named], None]:
    """Files in memory-backed storage or on the disk."""

    def send(replicas: Replicas, named: Named) -> None:
        root = weight_file.MEMORY if memory else Path(tempfile.gettempdir())
        with opening_storage(0, shared=root) as folder:
            write_weights(folder, named)
            replicas.ask("reload_weights", {"weights_path": str(folder)})

    return send


def send_directly(beside: bool) -> Callable[[Replicas, Named], None]:
    """Over gloo, or through a buffer that all open."""

    def send(replicas: Replicas, named: Named) -> None:
        weight_sender.name_device = lambda _: "cpu" if beside else "another"
        with tempfile.TemporaryDirectory() as folder:
            sender = WeightSender(replicas.ask_for, Path(folder), torch.device("cpu"))
            sender.send(named)

    return send


WAYS: dict[str, Callable[[Replicas, Named], None]] = {
    "old": send_as_before,
    "disk": send_files(memory=False),
    "memory": send_files(memory=True),
    "shared": send_directly(beside=True),
    "gloo": send_directly(beside=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    shapes = list_shapes(given.share)
    values = {shape: torch.randn(shape, dtype=torch.bfloat16) for shape in set(shapes.values())}
    content = sum(values[shape].nbytes for shape in shapes.values())
    whole = 2 * sum(shape.numel() for shape in list_shapes(1.0).values())
    print(f"{len(shapes)} tensors, {content / 1e9:.2f} GB of {whole / 1e9:.2f} GB; /dev/shm: ", end="")
    print(f"{shutil.disk_usage(weight_file.MEMORY).free / 1e9:.0f} GB free")
    for count in given.replicas:
        for way in given.ways:
            replicas = Replicas(count)
            named: Named = ((name, values[shape]) for name, shape in shapes.items())
            if way == "old":  # all tensors in one file: safetensors refuses shared memory
                named = iter([(name, tensor.clone()) for name, tensor in named])
            began, worked = time.monotonic(), time.process_time()
            WAYS[way](replicas, named)
            del named
            seconds = time.monotonic() - began
            worked = time.process_time() - worked
            taken, theirs = replicas.add_up()
            replicas.close()
            assert taken == [content] * count, taken
            rate = content / seconds / 1e9
            print(
                f"{count} replicas, {way:>6}: {seconds:5.1f} s ({whole / rate / 1e9:.0f} s for the whole model), of a "
                f"core {worked:.1f} s here and {theirs:.1f} s there; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
