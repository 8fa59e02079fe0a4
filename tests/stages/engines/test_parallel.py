"""Replicas, GPUs of each, pipelines and Ray: what a stage would start on a machine with 8 GPUs, read by vLLM's own
parser.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from stages.config.engines import VllmServer
from stages.config.runtime import LARGEST_SERVED_RANK, Runtime
from stages.engines import vllm_server
from stages.engines.engine import StartOptions
from stages.engines.server_weights import name_receiver
from stages.engines.vllm_server import VllmServerEngine
from stages.engines.weight_receiver import WeightReceiver
from stages.vlm.checkpoint import Checkpoint

GPUS = 8


class Started:
    """A server that is only written down."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str], scratch: Path) -> None:
        self.command, self.log, self.environment = list(command), log, dict(environment)

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """It is there at once."""

    def describe_exit(self) -> None:
        """It never ends."""

    def stop(self) -> None:
        """There is nothing to stop."""


@pytest.fixture
def started(
    tiny: Callable[[str], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[tuple[Any, str | None]]]:
    """`started(replicas=2, ...)`: for each server its arguments as vLLM reads them, and the GPUs that it sees."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: GPUS)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(vllm_server, "Server", Started)
    reply = SimpleNamespace(json=lambda: {"version": "0"})
    monkeypatch.setattr(VllmServerEngine, "_control", lambda self, *_: [reply])
    checkpoint = tiny("qwen2_5")

    def start(runtime: Runtime | None = None, adapter_rank: int = 0, **settings: Any) -> list[tuple[Any, str | None]]:
        server = VllmServer(kind="vllm_server", **settings)
        options = StartOptions(tmp_path, say=lambda text: None, adapter_rank=adapter_rank)
        engine = VllmServerEngine(checkpoint, runtime or Runtime(), server, options, "big", runtime is not None)
        engine.close()
        found = []
        for one in engine._servers:
            parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(one.command[3:])
            validate_parsed_serve_args(parsed)
            found.append((parsed, one.environment.get("CUDA_VISIBLE_DEVICES")))  # type: ignore[attr-defined]
        return found

    return start


def test_replicas_share_the_gpus_and_vllm_reads_what_each_is_told(started: Any) -> None:
    found = started(replicas=2, tensor_parallel=2, pipeline_parallel=2, sequences=64)
    assert [gpus for _, gpus in found] == ["0,1,2,3", "4,5,6,7"]
    for parsed, _ in found:
        assert (parsed.tensor_parallel_size, parsed.pipeline_parallel_size, parsed.max_num_seqs) == (2, 2, 64)
        assert parsed.gpu_memory_utilization == Runtime().gpu_memory_utilization
        assert parsed.enable_scale_out


def test_gpus_are_those_that_are_named_or_visible(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [gpus for _, gpus in started(replicas=2, gpus=(6, 3))] == ["6", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert [gpus for _, gpus in started(replicas=2)] == ["GPU-a", "GPU-b"]
    assert [gpus for _, gpus in started(tensor_parallel=2)] == ["GPU-a,GPU-b"]
    assert [gpus for _, gpus in started(gpus=(1,))] == ["GPU-b"]  # counted among the visible ones
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [gpus for _, gpus in started()] == [None]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="wants 3 replicas of 1 GPUs, but there are 2"):
        started(replicas=3)


def test_a_server_takes_its_own_share_of_memory_and_may_sleep(started: Any) -> None:
    ((parsed, _),) = started(gpus=(3,), memory_share=0.25, sharing="sleep")
    assert (parsed.gpu_memory_utilization, parsed.enable_sleep_mode) == (0.25, True)
    ((parsed, _),) = started(gpus=(3,))
    assert (parsed.gpu_memory_utilization, parsed.enable_sleep_mode) == (Runtime().gpu_memory_utilization, False)


def test_ray_and_other_arguments_go_through(started: Any) -> None:
    args = ("--distributed-executor-backend", "ray", "--mm-encoder-tp-mode", "data")
    ((parsed, _),) = started(tensor_parallel=8, pipeline_parallel=2, args=args)
    assert (parsed.distributed_executor_backend, parsed.mm_encoder_tp_mode) == ("ray", "data")
    assert (parsed.tensor_parallel_size, parsed.pipeline_parallel_size) == (8, 2)


def test_a_server_in_training_gets_what_its_way_of_new_weights_needs(started: Any) -> None:
    """On GPUs: a receiver for all weights, or an adapter; on several machines and in `file` vLLM has all that it needs.

    Other servers have none of it. vLLM loads the class by its name.
    """
    from vllm.config.lora import MaxLoRARanks
    from vllm.utils.import_utils import resolve_obj_by_qualname

    def find(*given: Any, **settings: Any) -> tuple[str, bool, int]:
        ((parsed, _),) = started(*given, gpus=(0,), **settings)
        return parsed.worker_extension_cls, bool(parsed.enable_lora), parsed.max_lora_rank

    assert max(get_args(MaxLoRARanks)) == LARGEST_SERVED_RANK
    unused, receiver = find()[2], name_receiver()
    assert find(Runtime()) == (receiver, False, unused)
    assert resolve_obj_by_qualname(receiver) is WeightReceiver
    assert find(Runtime(), adapter_rank=48) == ("", True, 64)
    assert find(Runtime(weight_transfer="direct")) == (receiver, False, unused)
    assert find(Runtime(weight_transfer="file")) == find() == ("", False, unused)
    ((parsed, _),) = started(Runtime(), args=("--distributed-executor-backend", "ray"))
    assert parsed.worker_extension_cls == ""


def test_no_server_trusts_code_or_listens_to_others(started: Any) -> None:
    for settings in ({}, {"port": 8000, "replicas": 2}):
        for parsed, _ in started(**settings):
            assert parsed.trust_remote_code is False
            assert parsed.load_format == "safetensors"
            assert not parsed.api_key, "other users could read it in the command line"
            assert parsed.uds or (parsed.host, parsed.allowed_origins) == ("127.0.0.1", [])
