"""Stages as jobs of a real Slurm: output, exit codes, GPUs, cancelling, pre-emption, time limits, killed submitters."""

import hashlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.config.yaml import merge_params, read_yaml
from tests.flows.tiny_run import copy_run

pytestmark = pytest.mark.slow

# A judge of 40 thousand weights; a checkpoint after every step, so that whatever ends it finds one.
BUILD = {"hidden_size": 32, "heads": 1, "layers": 1, "rows_per_step": 2, "warmup_steps": 1, "tokens_per_pack": 512}
JUDGE = ("flows.run", "model", "judge")


def overlay_of(steps: int, **launcher: Any) -> Mapping[str, Any]:
    return {
        "questions": {"splits": {"warm_start": 8, "imitation": 4, "validation": 2, "test": 4}},
        "models": {"judge": {"build": {**BUILD, "steps": steps, "reading_steps": 1}}},
        "runtime": {"checkpoint_minutes": 0, "checkpoint_share": 1.0, "launcher": launcher},
    }


@pytest.fixture
def project(make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A project whose judge trains for so many steps, with a launcher; a killed submitter counts as dead after 5 s."""
    monkeypatch.delenv("RIL_STORE", raising=False)

    def make(steps: int = 400, name: str = "project", **launcher: Any) -> Path:
        made = make_project(overlay_of(steps, **launcher), name)
        exchange = made / "flows" / "slurm" / "exchange.py"
        text = exchange.read_text()
        assert "\nLOST_SECONDS = 120.0" in text
        exchange.write_text(text.replace("\nLOST_SECONDS = 120.0", "\nLOST_SECONDS = 8.0"))
        return made

    return make


def list_steps(project: Path) -> list[int]:
    return sorted(int(path.parent.name[5:]) for path in project.glob(".ril/runs/model@judge/*/step_*/DONE"))


def hash_model(project: Path) -> str:
    return hashlib.sha256((project / "data/model/judge/model.safetensors").read_bytes()).hexdigest()


def list_numbers(said: str) -> list[int]:
    return [int(number) for number in re.findall(r"submitted as job (\d+)", said)]


def await_training(run: Any, project: Path) -> int:
    """Waits until the job has written a checkpoint; returns the job's number."""
    run.until(lambda: list_steps(project), 120, "no checkpoint")
    return list_numbers(run.said)[-1]


# --- a stage that runs through ---------------------------------------------------------------------------------------


def test_a_stage_runs_as_a_job_and_what_it_says_is_seen(
    project: Callable[..., Path], submit: Any, cluster: Any
) -> None:
    made = project(stages="all", partition="high", hours=0.5, arguments=["--nice=7"])
    run = submit(made, "flows.run", "questions", SECRET_OF_THE_USER="kept")
    assert run.wait() == 0, run.said
    (number,) = list_numbers(run.said)
    assert "questions: done in" in run.said, "the line of the stage, from the job"
    assert (made / "data" / "questions").is_dir()
    job = cluster.run("scontrol", "show", "job", str(number))
    for said in ("Partition=high", "TimeLimit=00:30:00", "Nice=7", f"WorkDir={made}", "Requeue=0"):
        assert said in job, job
    cluster.until(lambda: cluster.list_states() == {}, 30, "the job does not end")


def test_exit_codes_are_passed_on(project: Callable[..., Path], submit: Any) -> None:
    made = project(stages="all")
    work = made / "stages" / "questions.py"
    plain = work.read_text()
    for body, code, said in (
        ('raise Failure("ours")', 1, "error: ours"),
        ('raise UnusableData("theirs")', 2, "error: theirs"),
        ("raise SystemExit(3)", 3, "used up"),
        ("os._exit(7)", 7, "ended with exit code 7"),
        ("os.kill(os.getpid(), 9)", 137, "ended with exit code 137"),
    ):
        imports = "import os\nfrom stages.corpora.source import UnusableData\nfrom stages.job.failure import Failure\n"
        work.write_text(f"{plain}\n\n{imports}\ndef run(job):\n    {body}\n")
        run = submit(made, "flows.run", "questions")
        assert run.wait() == code, run.said
        assert said in run.said


def test_a_stage_that_loads_no_model_runs_here(project: Callable[..., Path], submit: Any) -> None:
    run = submit(project(), "flows.run", "questions")
    assert run.wait() == 0, run.said
    assert "submitted" not in run.said


def test_dvc_records_what_a_job_has_made(project: Callable[..., Path], submit: Any) -> None:
    made = project(stages="all")
    for words in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(words, cwd=made, check=True, timeout=60)
    run = submit(made, "flows.cli", "run", "--on", "slurm", "questions", RIL_LAUNCHER="")
    assert run.wait() == 0, run.said
    assert list_numbers(run.said)
    assert "questions: done in" in run.said
    assert "questions" in read_yaml(made / "dvc.lock")["stages"]
    again = submit(made, "flows.cli", "run", "--on", "slurm", "questions", RIL_LAUNCHER="")
    assert again.wait() == 0, again.said
    assert not list_numbers(again.said), "up to date"


def test_vllm_answers_in_a_job_as_it_does_here(
    tiny_run: Path, submit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's answers and what is recorded of them; each project has a store of its own."""
    monkeypatch.delenv("RIL_STORE", raising=False)
    there = copy_run(tiny_run, tmp_path / "there")
    write_params(there, {"teachers": {"internvl3": {"responses": 2, "sampling": {"max_tokens": 8}}}})
    run_here(there, "selection")
    here = copy_run(there, tmp_path / "here")
    run_here(here, "teacher", "internvl3")
    run = submit(there, "flows.run", "teacher", "internvl3")
    assert run.wait(400) == 0, run.said
    assert len(list_numbers(run.said)) == 1, "a job, since it loads a model"
    assert "8 answers wanted, 0 in the store" in run.said
    assert hash_files(there / "data/teacher/internvl3") == hash_files(here / "data/teacher/internvl3")
    again = submit(there, "flows.run", "teacher", "internvl3")
    assert again.wait() == 0, again.said
    assert "8 in the store" in again.said


def run_here(project: Path, *run: str) -> None:
    words = [sys.executable, "-m", "flows.run", *run]
    done = subprocess.run(
        words, cwd=project, capture_output=True, text=True, timeout=400, env=plain_environment(project)
    )
    assert done.returncode == 0, done.stderr


def hash_files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert files
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- GPUs ------------------------------------------------------------------------------------------------------------


def test_a_job_asks_for_the_gpus_that_the_stage_claims(project: Callable[..., Path], submit: Any, cluster: Any) -> None:
    made = project(arguments=["--begin=now+1hour"])
    write_params(made, {"runtime": {"stage_engines": {"rollout": {"student": {"kind": "vllm", "gpus": [0, 1]}}}}})
    (made / "data" / "warm_start").mkdir(parents=True)
    for folder in ("questions", "selection/kept"):
        (made / "data" / folder).mkdir(parents=True)
    run = submit(made, "flows.run", "rollout")
    run.until(lambda: "waits" in run.said, 60, "not submitted")
    (number,) = list_numbers(run.said)
    assert "gres:gpu:2" in cluster.run("scontrol", "show", "job", str(number))
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143, run.said
    assert cluster.list_states() == {}, "a job that waits is taken out of the queue"


def test_more_gpus_than_the_cluster_has_are_refused_with_the_key(project: Callable[..., Path], submit: Any) -> None:
    made = project()
    write_params(made, {"runtime": {"stage_engines": {"rollout": {"student": {"kind": "vllm", "gpus": [0, 1, 2]}}}}})
    for folder in ("warm_start", "questions", "selection/kept"):
        (made / "data" / folder).mkdir(parents=True)
    run = submit(made, "flows.run", "rollout")
    assert run.wait(60) == 1
    assert re.search(r"error: rollout: Slurm refuses the job: sbatch: .*runtime\.launcher", run.said), run.said


def write_params(project: Path, overlay: Mapping[str, Any]) -> None:
    import yaml

    path = project / "params.yaml"
    path.write_text(yaml.safe_dump(merge_params(read_yaml(path), overlay), sort_keys=False))


# --- ends and beginnings ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, copy_project: Callable[..., Path]) -> Path:
    """A project whose judge was trained here, in one go."""
    folder = copy_project(tmp_path_factory.mktemp("plain") / "project", overlay_of(400))
    words = [sys.executable, "-m", *JUDGE]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, env=plain_environment(folder))
    assert done.returncode == 0, done.stderr
    return folder


def assert_same_judge(made: Path, uninterrupted: Path) -> None:
    """Bytes of the weights; if they differ, the first step whose loss or gradient norm does is shown."""
    rows = [(one / "reports/model/judge/history.csv").read_text().splitlines() for one in (made, uninterrupted)]
    parted = next((pair for pair in zip(*rows, strict=True) if pair[0] != pair[1]), None)
    assert (hash_model(made), parted) == (hash_model(uninterrupted), None)


def plain_environment(folder: Path) -> dict[str, str]:
    import os

    left_out = ("DVC_STAGE", "DVC_ROOT", "RIL_STORE", "RIL_LAUNCHER")
    return {name: value for name, value in os.environ.items() if name not in left_out} | {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_stage_ends_its_job_with_a_checkpoint_and_goes_on(
    number: signal.Signals, project: Callable[..., Path], submit: Any, cluster: Any, uninterrupted: Path
) -> None:
    made = project()
    run = submit(made, *JUDGE)
    await_training(run, made)
    run.process.send_signal(number)
    assert run.wait(90) == 128 + number, run.said
    assert cluster.list_states() == {}
    assert "stopping after this step" in run.said or list_steps(made)
    done = list_steps(made)[-1]
    again = submit(made, *JUDGE)
    assert again.wait() == 0, again.said
    assert done > 0
    assert_same_judge(made, uninterrupted)


def test_a_pre_empted_stage_is_submitted_again_and_ends_with_the_same_bytes(
    project: Callable[..., Path], submit: Any, cluster: Any, uninterrupted: Path
) -> None:
    made = project(partition="low")
    run = submit(made, *JUDGE)
    first = await_training(run, made)
    other = cluster.run("sbatch", "--parsable", "-p", "high", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 600")
    run.until(lambda: len(list_numbers(run.said)) == 2, 60, "not submitted again")
    assert f"job {first} was ended (preempted); submits it again, attempt 1 of 3 without progress" in run.said
    run.until(lambda: "waits (" in run.said.rpartition("submitted as")[2], 60, "it does not wait for the other job")
    steps = list_steps(made)
    assert steps
    cluster.run("scancel", other.strip())
    assert run.wait() == 0, run.said
    assert_same_judge(made, uninterrupted)


def test_a_time_limit_ends_with_a_checkpoint_and_attempts_are_limited(
    project: Callable[..., Path], submit: Any
) -> None:
    made = project(steps=100_000, hours=2 / 60, attempts=0)  # SIGTERM 40 s before its end, or up to 30 s sooner
    write_params(made, {"runtime": {"grace_seconds": 10.0, "checkpoint_minutes": 100_000}})
    run = submit(made, *JUDGE)
    assert run.wait(180) == 1, run.said
    assert "stopping after this step" in run.said
    assert list_steps(made), "the checkpoint of the end; no other one was due"
    assert "raise runtime.launcher.hours or attempts, or lower runtime.checkpoint_minutes" in run.said


def test_a_job_that_somebody_cancels_is_not_submitted_again(
    project: Callable[..., Path], submit: Any, cluster: Any
) -> None:
    made = project(steps=100_000)
    run = submit(made, *JUDGE)
    number = await_training(run, made)
    cluster.run("scancel", str(number))
    assert run.wait(90) == 1, run.said
    assert f"error: model@judge: job {number} was cancelled; run it again" in run.said


def test_the_job_of_a_killed_submitter_ends_by_itself(project: Callable[..., Path], submit: Any, cluster: Any) -> None:
    made = project(steps=100_000)
    run = submit(made, *JUDGE)
    number = await_training(run, made)
    run.kill()
    cluster.until(lambda: cluster.list_states() == {}, 60, "the job goes on")
    output = (made / ".ril/slurm/model@judge" / f"output-{number}.log").read_text()
    assert f"whoever submitted job {number} gives no sign of life" in output
    assert "stopped; run it again" in output


def test_the_next_submitter_ends_the_job_of_a_killed_one_before_it_submits(
    project: Callable[..., Path], submit: Any, cluster: Any, uninterrupted: Path
) -> None:
    made = project()
    run = submit(made, *JUDGE)
    first = await_training(run, made)
    run.kill()
    again = submit(made, *JUDGE)
    most = 0
    while again.process.poll() is None:
        most = max(most, sum(state == "RUNNING" for state in cluster.list_states().values()))
        time.sleep(0.1)
    assert again.process.returncode == 0, again.said
    assert f"ends job {first} of an earlier run, whose submitter has died" in again.said
    assert most == 1
    assert_same_judge(made, uninterrupted)


def test_a_job_that_still_waits_is_taken_over(project: Callable[..., Path], submit: Any, cluster: Any) -> None:
    made = project(stages="all")
    other = cluster.run("sbatch", "--parsable", "-p", "high", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 600")
    run = submit(made, "flows.run", "questions")
    run.until(lambda: "waits (" in run.said, 60, "it does not wait")
    (number,) = list_numbers(run.said)
    run.kill()
    again = submit(made, "flows.run", "questions")
    again.until(lambda: f"job {number} of an earlier run still waits" in again.said, 60, "not taken over")
    second = submit(made, "flows.run", "questions")
    assert second.wait(60) == 1, "two submitters at a time"
    assert "questions is being submitted by process" in second.said
    cluster.run("scancel", other.strip())
    assert again.wait() == 0, again.said
    assert list_numbers(again.said) == []
    assert "questions: done in" in again.said


def test_a_controller_that_is_started_anew_is_waited_for(
    project: Callable[..., Path], submit: Any, cluster: Any, uninterrupted: Path
) -> None:
    """The user has preloaded OpenMP, as vLLM advises: it is there before the job sets its number of threads."""
    made = project()
    (openmp,) = (Path(torch.__file__).parent / "lib").glob("libgomp*.so*")
    run = submit(made, *JUDGE, LD_PRELOAD=str(openmp))
    await_training(run, made)
    cluster.end_daemon("slurmctld")
    time.sleep(3)
    cluster.start_controller()
    assert run.wait() == 0, run.said
    assert_same_judge(made, uninterrupted)
