"""Which engine a model gets, and which is refused; nothing heavy is started here."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from stages.config.engines import OpenAi, Replay, Vllm, VllmServer
from stages.config.runtime import Runtime
from stages.engines import start
from stages.engines.arguments import format_flags
from stages.engines.endpoint_engine import EndpointEngine
from stages.engines.engine import StartOptions
from stages.engines.replay import MissingAnswers
from stages.engines.start import assign_gpus, start_engine, start_trainable
from stages.engines.vllm_server import assign_devices
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card

SHARING: tuple[Literal["sleep", "memory"], ...] = ("sleep", "memory")
SERVER = VllmServer(kind="vllm_server", replicas=2)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Names and arguments of the engines that would have been started."""
    found: list[tuple[Any, ...]] = []
    for name in ("VllmEngine", "VllmServerEngine"):
        monkeypatch.setattr(start, name, lambda *arguments, name=name: found.append((name, *arguments[1:])))
    return found


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(folder, folder, "qwen2_5", "fp32", 256, "0" * 64)


def test_the_folder_says_whose_settings_count(started: list[tuple[Any, ...]], tmp_path: Path) -> None:
    student = Vllm(kind="vllm", sequences=7, tensor_parallel=2)
    runtime = Runtime(engines={"judge": SERVER, "student": student})
    need = StartOptions(tmp_path)
    for folder in ("data/model/judge", "data/model/other", "data/warm_start", "data/ril/model"):
        start_engine(checkpoint(tmp_path / folder), runtime, need)
    start_trainable(checkpoint(tmp_path / "data/warm_start"), runtime, need)
    assert started == [
        ("VllmServerEngine", runtime, SERVER, need, "judge", False),
        ("VllmEngine", runtime, Vllm(kind="vllm"), False, 0),
        ("VllmEngine", runtime, student, False, 0),
        ("VllmEngine", runtime, student, False, 0),
        ("VllmEngine", runtime, student, False, 0),
    ]


def test_a_stage_may_have_an_engine_of_its_own_for_a_model(started: list[tuple[Any, ...]], tmp_path: Path) -> None:
    loop = Vllm(kind="vllm", sequences=3)
    runtime = Runtime(engines={"student": SERVER}, stage_engines={"ril": {"student": loop}})
    for stage in ("ril", "rollout"):
        start_engine(checkpoint(tmp_path / "data/warm_start"), runtime, StartOptions(tmp_path, stage=stage))
    assert [(name, settings) for name, _, settings, *_ in started] == [
        ("VllmEngine", loop),
        ("VllmServerEngine", SERVER),
    ]


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("RIL_ALL_DEVICES", raising=False)


@pytest.mark.usefixtures("eight_gpus")
def test_generation_has_every_gpu_unless_some_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def assign(settings: Vllm | VllmServer, **options: Any) -> tuple[str, list[str]]:
        got = assign_gpus(settings, StartOptions(Path(), **options))
        servers = assign_devices("x", got) if isinstance(got, VllmServer) else []
        return got.kind, [server["CUDA_VISIBLE_DEVICES"] for server in servers]

    each = [str(gpu) for gpu in range(8)]
    assert assign(Vllm(kind="vllm")) == ("vllm_server", each)
    assert assign(Vllm(kind="vllm", tensor_parallel=4)) == ("vllm_server", ["0,1,2,3", "4,5,6,7"])
    assert assign(Vllm(kind="vllm", tensor_parallel=8)) == ("vllm", [])  # one replica that spans what this process sees
    assert assign(Vllm(kind="vllm", gpus=(5,))) == ("vllm_server", ["5"])
    assert assign(VllmServer(kind="vllm_server")) == ("vllm_server", each)
    assert assign(VllmServer(kind="vllm_server", gpus=(6, 7), replicas=1)) == ("vllm_server", ["6"])
    assert assign(Vllm(kind="vllm"), gpus=(0, 1)) == ("vllm_server", ["0", "1"])  # in stage ril
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # a rank on GPU 3: vLLM may run in its process, there only
    monkeypatch.setenv("RIL_ALL_DEVICES", ",".join(each))
    assert assign(Vllm(kind="vllm"), gpus=(3,)) == ("vllm", [])
    assert assign(Vllm(kind="vllm"), gpus=(3,), own_process=True) == ("vllm_server", ["3"])
    assert assign(Vllm(kind="vllm"), gpus=(4,)) == ("vllm_server", ["4"])
    with pytest.raises(
        ValueError, match=r"GPU 9 is named in runtime, but this stage sees 8 \(0, 1, 2, 3, 4, 5, 6, 7\)"
    ):
        assign(Vllm(kind="vllm", gpus=(9,)))


def test_a_student_in_training_needs_an_engine_that_takes_weights(
    started: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    start_trainable(checkpoint(tmp_path / "warm_start"), Runtime(engines={"student": SERVER}), StartOptions(tmp_path))
    (got,) = started
    assert got == (
        "VllmServerEngine",
        Runtime(engines={"student": SERVER}),
        SERVER,
        StartOptions(tmp_path),
        "student",
        True,
    )
    running = VllmServer(kind="vllm_server", urls=("http://node7:8000",))
    for settings in (Replay(kind="replay"), OpenAi(kind="openai", base_url="http://x/v1"), running):
        with pytest.raises(
            ValueError, match=rf"runtime\.engines\.student is '{settings.kind}'.* new weights every step"
        ):
            start_trainable(
                checkpoint(tmp_path / "warm_start"), Runtime(engines={"student": settings}), StartOptions(tmp_path)
            )
    assert len(started) == 1


def test_replay_names_what_is_missing(tmp_path: Path) -> None:
    runtime = Runtime(engines={"judge": Replay(kind="replay")})
    with pytest.raises(
        MissingAnswers, match=r"model judge: 5 answers to 2 questions are not in the store \(q1, q2\).*RIL_STORE"
    ):
        start_engine(checkpoint(tmp_path / "model" / "judge"), runtime, StartOptions(tmp_path, [("q1", 2), ("q2", 3)]))


def test_a_model_of_others_is_known_by_all_that_is_asked_of_it(tmp_path: Path) -> None:
    """The identity, and with it the key of its answers, moves with the model and not with the address."""
    folder = tmp_path / "model" / "big"
    seen = set()
    for change in (
        {},
        {"name": "big-2"},
        {"provider": "another"},
        {"body": {"effort": "low"}},
        {"leave_out": ["seed"]},
    ):
        write_card(folder, "remote", "bf16", 4096, {"endpoint": {"provider": "somebody", "name": "big-1", **change}})
        opened = open_checkpoint(folder)
        assert opened.endpoint is not None
        seen.add(opened.identity)
        for address in ("http://one/v1", "http://two/v1"):
            settings = OpenAi(kind="openai", base_url=address)
            engine = start_engine(opened, Runtime(engines={"big": settings}), StartOptions(tmp_path))
            assert isinstance(engine, EndpointEngine)
            engine.close()
            assert open_checkpoint(folder).identity == opened.identity
    assert len(seen) == 5


def test_arguments_become_flags() -> None:
    given = {
        "model": "/m",
        "enforce_eager": True,
        "trust_remote_code": False,
        "max_num_seqs": 4,
        "limit_mm_per_prompt": {"video": 0},
        "nothing": {},
    }
    assert format_flags(given) == [
        "--model",
        "/m",
        "--enforce-eager",
        "--no-trust-remote-code",
        "--max-num-seqs",
        "4",
        "--limit-mm-per-prompt",
        '{"video": 0}',
    ]


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_an_engine_that_sleeps_is_refused_with_expandable_segments(
    started: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:512, Expandable_Segments: True")
    trained, need = checkpoint(tmp_path / "data/warm_start"), StartOptions(tmp_path, stage="ril")
    sleeps, keeps = (
        Runtime(stage_engines={"ril": {"student": Vllm(kind="vllm", sharing=sharing, memory_share=0.3)}})
        for sharing in SHARING
    )
    with pytest.raises(ValueError, match=rf"stage_engines.ril.student.sharing is sleep, but {name}="):
        start_trainable(trained, sleeps, need)
    start_trainable(trained, keeps, need)
    assert len(started) == 1
