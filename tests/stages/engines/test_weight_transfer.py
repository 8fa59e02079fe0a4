"""New weights on their way to an engine: buckets, files, process groups and shared buffers, without vLLM."""

import inspect
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.engines import weight_file, weight_group
from stages.engines.engine import EngineError
from stages.engines.vllm_server import VllmServerEngine
from stages.engines.weight_buckets import iter_buckets, unpack
from stages.engines.weight_file import choose_storage, opening_storage, remove_leftovers, write_weights
from stages.engines.weight_group import describe_buffer, open_buffer
from stages.engines.weight_receiver import WeightReceiver
from stages.engines.weight_sender import WeightSender

CPU = torch.device("cpu")


def make_weights() -> dict[str, torch.Tensor]:
    """Of three dtypes, of odd sizes, one transposed, one empty, and a tied head."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    embedding = draw(50, 7)
    return {
        "embedding": embedding,
        "layer.up": draw(33, 5).bfloat16(),
        "layer.down": draw(5, 33).T,
        "layer.bias": draw(3).half(),
        "nothing": draw(0),
        "head": embedding,
    }


def test_tensors_come_out_of_their_buckets_as_they_went_in() -> None:
    weights = make_weights()
    buckets = list(iter_buckets(weights.items(), 600))
    assert len(buckets) > 3
    assert max(len(bucket.tensors) for bucket in buckets) > 1
    assert sum(bucket.content for bucket in buckets) == sum(one.nbytes for one in weights.values())
    found: dict[str, torch.Tensor] = {}
    for bucket in buckets:
        buffer = torch.full((bucket.size,), 255, dtype=torch.uint8)
        bucket.pack(buffer)
        found |= dict(unpack(buffer, json.loads(json.dumps(bucket.slots))))
    assert list(found) == list(weights)
    for name, value in weights.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def test_files_are_bounded_and_hold_every_tensor(tmp_path: Path) -> None:
    weights = make_weights()
    assert write_weights(tmp_path, weights.items(), 600) == sum(one.nbytes for one in weights.values())
    files = sorted(tmp_path.iterdir())
    assert len(files) > 3
    found = {name: value for file in files for name, value in load_file(file).items()}
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert max(sum(value.nbytes for value in load_file(file).values()) for file in files) <= 50 * 7 * 4


def test_files_go_to_memory_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_file, "MEMORY", tmp_path)
    monkeypatch.setattr(weight_file, "RESERVE", 0)
    disk = Path(weight_file.tempfile.gettempdir())
    free = weight_file.shutil.disk_usage(tmp_path).free
    assert choose_storage(1000) == tmp_path
    assert choose_storage(free * 2) == disk, "its quota is too small"
    monkeypatch.setattr(weight_file, "measure_free_memory", lambda: 999)
    assert choose_storage(1000) == disk, "it has room, but the machine has none"
    monkeypatch.setattr(weight_file, "MEMORY", tmp_path / "none")
    assert choose_storage(1) == disk


def test_a_folder_is_private_and_goes_with_its_block(tmp_path: Path) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    with opening_storage(1000, scratch) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert next(scratch.iterdir()).resolve() == folder.resolve()
        remove_leftovers()
        assert folder.exists(), "its owner lives"
    assert not folder.exists()
    assert not list(scratch.iterdir())
    with opening_storage(1000, shared=tmp_path) as folder:
        assert folder.parent == tmp_path


HOLDER = """
import sys, time
from pathlib import Path
from stages.engines.weight_file import opening_storage
with opening_storage(1000, Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None) as folder:
    (folder / "model-00000.safetensors").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(600)
"""


def kill_holder(*folders: Path) -> Path:
    """Kills a process while it holds a folder of weights; returns the folder."""
    command = [sys.executable, "-c", HOLDER, *map(str, folders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir()
        process.kill()
    return folder


def test_the_next_start_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    left = [kill_holder(scratch), kill_holder(scratch, tmp_path)]
    assert all((folder / "model-00000.safetensors").exists() for folder in left)
    (other := tmp_path / "ril-weights-new").mkdir()  # of a process that is about to lock it
    remove_leftovers(tmp_path)
    assert not any(folder.exists() for folder in left)
    assert other.exists()
    os.utime(other, (0, 0))
    remove_leftovers(tmp_path)
    assert not other.exists()


def test_the_supervisor_of_a_killed_stage_removes_its_weights(tmp_path: Path) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    left = kill_holder(scratch)
    command = "from stages.engines.supervisor import supervise; from pathlib import Path; import sys\n"
    command += "supervise(1 << 30, Path(sys.argv[1]), ['sleep', '60'])"  # its stage is gone
    subprocess.run([sys.executable, "-c", command, str(scratch)], check=True, timeout=60)
    assert not left.exists()
    assert not scratch.exists()


class Model(torch.nn.Module):
    """Takes whatever is loaded, as vLLM does until a layer is whole: without a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Any) -> None:
        self.loaded |= dict(weights)


class Worker(WeightReceiver):
    """A worker of vLLM whose model is `Model`; `kind` is the device that it says it has."""

    def __init__(self, rank: int) -> None:
        self.rank, self.device, self.vllm_config, self.model = rank, CPU, SimpleNamespace(model_config=None), Model()
        self.calls: list[str] = []
        note = lambda name: lambda: self.calls.append(name)  # noqa: E731
        resets = {name: note(name) for name in ("reset_lora_state", "reset_encoder_cache", "reset_mm_cache")}
        self.model_runner = SimpleNamespace(get_model=lambda: self.model, **resets)


@pytest.fixture
def vllm_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four functions of vLLM that the receiver calls, without their effects."""
    reload = SimpleNamespace(
        initialize_layerwise_reload=lambda model: model.loaded.clear(), finalize_layerwise_reload=lambda model, _: None
    )
    monkeypatch.setitem(sys.modules, "vllm.config", SimpleNamespace(set_current_vllm_config=lambda _: nullcontext()))
    monkeypatch.setitem(sys.modules, "vllm.model_executor.model_loader.reload", reload)
    monkeypatch.setitem(sys.modules, "vllm.utils.nccl", SimpleNamespace(unpinned_nccl_env=nullcontext))


def make_sender(workers: list[list[Worker]], folder: Path, asked: list[str]) -> WeightSender:
    """A sender whose calls reach all workers at the same time, as JSON."""

    def ask(call: Callable[..., Any], arguments: Mapping[str, Any]) -> list[list[Any]]:
        asked.append(method := call.__name__)
        given = json.loads(json.dumps(arguments))
        everyone = [worker for engine in workers for worker in engine]
        with ThreadPoolExecutor(len(everyone)) as threads:
            found = iter(threads.map(lambda worker: getattr(worker, method)(**given), everyone))
        return [[next(found) for _ in engine] for engine in workers]

    return WeightSender(ask, folder, CPU)


@pytest.mark.parametrize("away", [(), (0,), (1, 2), (0, 1, 2)])
def test_every_worker_of_every_replica_gets_all_weights(
    away: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vllm_stand_ins: None
) -> None:
    """One replica of two GPUs and one of one; those in `away` are not on the sender's, and get them over gloo."""
    workers = [[Worker(0), Worker(1)], [Worker(2)]]
    everyone = [worker for engine in workers for worker in engine]
    for worker in everyone:
        if worker.rank in away:
            where = [worker._receiver_name, f"GPU {worker.rank}"]
            monkeypatch.setattr(worker, "locate_receiver", lambda where=where: where)
    asked: list[str] = []
    sender = make_sender(workers, tmp_path, asked)
    weights = make_weights()
    for factor in (1, 3):  # the group is opened once
        sent = {name: value * factor for name, value in weights.items()}
        assert sender.send(sent.items(), limit=600) == sum(value.nbytes for value in weights.values())
        for worker in everyone:
            assert (worker._sender_group is not None) == (worker.rank in away)
            assert list(worker.model.loaded) == list(weights)
            assert all(torch.equal(worker.model.loaded[name], value) for name, value in sent.items())
            assert worker.calls == ["reset_lora_state", "reset_encoder_cache", "reset_mm_cache"] * ((factor + 1) // 2)
    assert asked.count("join_sender") == bool(away)
    assert asked.count("receive_bucket") > 6
    assert not list(tmp_path.glob("ril-weights-*")), "no link is left, so no buffer"


def test_a_server_that_fails_ends_the_transfer_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vllm_stand_ins: None
) -> None:
    """The worker never comes to the broadcast; the sender's side of it must not hold the stage."""
    worker = Worker(0)
    monkeypatch.setattr(worker, "locate_receiver", lambda: [worker._receiver_name, "GPU 1"])
    sender = make_sender([[worker]], tmp_path, [])
    sender.send(make_weights().items())

    def fail(**_: Any) -> None:
        raise EngineError("the server ended")

    monkeypatch.setattr(worker, "receive_bucket", fail)
    began = time.monotonic()
    with pytest.raises(EngineError, match="the server ended"):
        sender.send(make_weights().items())
    assert time.monotonic() - began < 5
    assert not list(tmp_path.glob("ril-weights-*")), "no link is left, so no buffer"


def ask_two_servers(answer: Callable[[str], Any]) -> list[Any]:
    """Asks two servers for which `answer` stands."""
    engine = VllmServerEngine.__new__(VllmServerEngine)
    engine.label, engine._urls = "student", ["first", "second"]
    engine._ask = lambda url, *_: answer(url)  # type: ignore[method-assign]
    return engine._control("POST", "/collective_rpc")


def test_all_replicas_are_asked_at_the_same_time() -> None:
    together = threading.Barrier(2)

    def answer(url: str) -> Any:
        together.wait(timeout=10)
        return SimpleNamespace(status_code=200, url=url)

    assert [reply.url for reply in ask_two_servers(answer)] == ["first", "second"]


def test_a_server_that_fails_is_named_while_the_other_one_waits() -> None:
    end = threading.Event()

    def answer(url: str) -> Any:
        if url == "first":
            end.wait(30)
        return SimpleNamespace(status_code=500, text="no such method")

    began = time.monotonic()
    with pytest.raises(EngineError, match="student at second: POST /collective_rpc: HTTP 500: no such method"):
        ask_two_servers(answer)
    end.set()
    assert time.monotonic() - began < 10


def test_a_buffer_on_a_gpu_is_described_without_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch needs to open the sender's memory in another process arrives as it was, but for the GPU's number."""
    size, seen = 4096, []
    given = (
        torch.Tensor, torch.Size([size]), (1,), 0, torch.storage.TypedStorage, torch.uint8, 5, b"\x00memory\xff",
        size * 2, 512, False, b"counter\x80", 64, b"event\x01", True,
    )  # fmt: skip
    monkeypatch.setattr(weight_group._reductions, "reduce_tensor", lambda buffer: (None, given))
    monkeypatch.setattr(weight_group._reductions, "rebuild_cuda_tensor", lambda *found: seen.append(found))
    sent = SimpleNamespace(device=torch.device("cuda", 5), numel=lambda: size)
    described = json.loads(json.dumps(describe_buffer(sent, tmp_path)))  # type: ignore[arg-type]
    open_buffer(described, torch.device("cuda", 1))
    assert seen == [(*given[:6], 1, *given[7:])]
    assert [type(one) for one in seen[0]] == [type(one) for one in given]


def test_what_torch_shares_of_a_buffer_has_the_order_that_is_relied_on() -> None:
    names = inspect.getfullargspec(weight_group._reductions.rebuild_cuda_tensor).args
    places = {name: names[place] for name, place in {**weight_group._NUMBERS, **weight_group._HANDLES}.items()}
    assert places == {
        "offset": "tensor_offset",
        "size": "storage_size_bytes",
        "storage_offset": "storage_offset_bytes",
        "counter_offset": "ref_counter_offset",
        "synchronize": "event_sync_required",
        "memory": "storage_handle",
        "counter": "ref_counter_handle",
        "event": "event_handle",
    }
    assert names[weight_group._DEVICE] == "storage_device"
    assert names[10] == "requires_grad"
