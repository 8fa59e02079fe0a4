"""Which process sees which GPU: real ranks and real supervisors on pretended GPUs, with a stand-in for vLLM."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.profile import read_profile
from stages.config.params import load_params
from stages.config.yaml import merge_params
from tests.faults.pretended_gpus import Seen, pretend_gpus, read_seen

Start = Callable[..., "subprocess.Popen[str]"]
LIMIT = 400.0  # seconds; six ranks on two busy cores need 90
LOOP = {"steps": 1, "warmup_steps": 0, "validation_every": 1, "questions_per_step": 2}


def run_loop(project: Path, start: Start, count: int, runtime: dict[str, Any]) -> list[Seen]:
    """Runs stage `ril` on `count` pretended GPUs; returns its processes."""
    path = project / "params.yaml"
    overlay = {"ril": LOOP, "runtime": runtime}
    path.write_text(yaml.safe_dump(merge_params(yaml.safe_load(path.read_text()), overlay)))
    pretend_gpus(project, count)
    process = start(project, "pretended_stage", "ril", RIL_STORE=str(project / "store"), OMP_NUM_THREADS="1")
    try:
        said = process.communicate(timeout=LIMIT)[1]
    finally:
        process.kill()
    assert process.returncode == 0, said
    return read_seen(project)


@pytest.mark.slow
def test_the_papers_arrangement_on_eight_gpus(training_project: Path, start: Start, root: Path) -> None:
    """One GPU for the student's vLLM, one for the judge, six ranks with ZeRO-3; nobody sees another one's GPU."""
    runtime = read_profile(root, "paper")["runtime"]
    seen = run_loop(training_project, start, 8, runtime)
    settings = load_params(training_project / "params.yaml").runtime
    assert (settings.zero_stage, settings.gradient_checkpointing) == (3, True)
    servers = {one.model: one.devices for one in seen if one.model}
    assert servers == {"student": "0", "judge": "1"}
    ranks = {int(one.environment["RANK"]): one for one in seen if one.model is None}
    assert {rank: one.devices for rank, one in sorted(ranks.items())} == {rank: str(rank + 2) for rank in range(6)}
    assert {one.environment["LOCAL_RANK"] for one in ranks.values()} == {"0"}, "the only GPU that it sees"
    assert {one.environment["WORLD_SIZE"] for one in ranks.values()} == {"6"}
    assert len({one.devices for one in seen}) == len(seen) == 8, "no GPU is seen twice"
    for one in seen:
        if one.model:
            assert not {"RANK", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"} & one.environment.keys()


@pytest.mark.slow
def test_engines_that_share_a_gpu_sleep_while_the_loop_trains(training_project: Path, start: Start) -> None:
    asleep = {"kind": "vllm_server", "memory_share": 0.3, "sharing": "sleep"}
    engines = {"student": asleep, "judge": asleep}
    seen = run_loop(training_project, start, 1, {"gpus": 1, "stage_engines": {"ril": engines}})
    assert [(one.model, one.devices) for one in seen if one.model] == [("student", "0"), ("judge", "0")]
    assert [one.devices for one in seen if one.model is None] == ["0"]
    asked = [line.split() for line in (training_project / "seen" / "requests.txt").read_text().splitlines()]
    order = [(model, path.strip("/").split("?")[0]) for model, path in asked]
    sleeps = [order.index((model, "sleep")) for model in ("student", "judge")]
    wakes = [order.index((model, "wake_up")) for model in ("student", "judge")]
    generated = [place for place, (_, path) in enumerate(order) if path.startswith("inference")]
    judged = [place for place in generated if order[place][0] == "judge"]
    assert judged, "the judge was asked"
    assert max(judged) < min(sleeps), "it has finished before it sleeps"
    assert max(sleeps) < min(wakes)
    assert not [place for place in generated if min(sleeps) < place < max(wakes)]
    weights = [place for place, (_, path) in enumerate(order) if path == "collective_rpc"]
    assert len(weights) == 1
    assert max(wakes) < weights[0], "new weights need the engine's memory"
