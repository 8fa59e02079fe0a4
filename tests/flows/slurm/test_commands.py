"""What Slurm's commands say, what a job is given, and a controller that does not answer."""

import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.environment import list_missing_variables
from flows.jobs import open_job
from flows.slurm.commands import (
    ControllerSilent,
    JobState,
    SlurmRefusal,
    list_jobs,
    look_at_job,
    parse_job,
    submit_script,
)
from flows.slurm.exchange import Exchange
from flows.slurm.submission import make_job_environment, make_options, make_script, measure_progress, name_job
from stages.config.launcher import Launcher
from stages.config.params import load_params
from stages.job.job import Job

LINE = (
    "JobId=31 JobName=ril-ril-0123 UserId=root(0) GroupId=root(0) Priority=42 Nice=0 Account=(null) JobState={state} "
    "Reason={reason} Dependency=(null) Requeue=0 Restarts=0 BatchFlag=1 Reboot=0 ExitCode={code} RunTime=00:00:01 "
    "Partition=low ReqNodeList=(null) ExcNodeList=(null) NodeList={nodes} BatchHost=n1 Command=(null) Comment=abc"
)


@given(
    st.sampled_from(["PENDING", "RUNNING", "FAILED", "OUT_OF_MEMORY"]), st.integers(0, 255), st.integers(0, 64),
    st.from_regex(r"[A-Za-z]{1,12}", fullmatch=True),
)  # fmt: skip
def test_a_job_is_read_as_scontrol_writes_it(state: str, code: int, signal: int, reason: str) -> None:
    line = LINE.format(state=state, reason=reason, code=f"{code}:{signal}", nodes="n[1-2]")
    expected = "" if reason == "None" else reason
    assert parse_job(line) == JobState(31, state, expected, code, signal, "n[1-2]")


def test_what_is_no_job_is_none() -> None:
    assert parse_job("") is None
    assert parse_job("No jobs in the system") is None
    waiting = parse_job(LINE.format(state="PENDING", reason="None", code="0:0", nodes="(null)"))
    assert waiting == JobState(31, "PENDING")


def write_command(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first in PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", ControllerSilent),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", ControllerSilent),
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", SlurmRefusal),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition", SlurmRefusal),
    ],
)
def test_silence_and_refusal_are_told_apart(said: str, kind: type[Exception], commands: Path) -> None:
    for name in ("sbatch", "squeue"):
        write_command(commands, name, f"sys.exit({said!r})")
    with pytest.raises(kind, match=re.escape(said)):
        submit_script("#!/bin/sh\n", [], os.environ)
    with pytest.raises(kind, match=re.escape(said)):
        list_jobs("ril-x")


def test_a_job_that_is_forgotten_is_none_and_a_missing_command_is_said(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_command(commands, "scontrol", "sys.exit('slurm_load_jobs error: Invalid job id specified')")
    assert look_at_job(3) is None
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SlurmRefusal, match="squeue is not installed here"):
        list_jobs("ril-x")


def test_filters_that_the_user_has_set_for_squeue_hide_no_job(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_command(commands, "squeue", "import os; print('5|RUNNING|' + os.environ.get('SQUEUE_STATES', 'none'))")
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    assert [(one.number, one.state, one.comment) for one in list_jobs("ril-x")] == [(5, "RUNNING", "none")]


@pytest.fixture
def job(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    return open_job("teacher", "internvl3", root, load_params(root / "params.yaml"))


def test_the_options_of_a_job(job: Job, tmp_path: Path) -> None:
    launcher = Launcher(
        kind="slurm", partition="gpu", account="lab", hours=1.51, gpu_type="h100", arguments=("--mem=200G",)
    )
    options = make_options(job, launcher, 8, Exchange(tmp_path / "100%"))
    for option in ("--gres=gpu:h100:8", "--partition=gpu", "--account=lab", "--time=91", "--no-requeue",
                   f"--chdir={job.root}", f"--output={tmp_path}/100%%/output-%j.log",
                   "--signal=B:TERM@55"):  # fmt: skip
        assert option in options
    assert options[-1] == "--mem=200G"
    plain = make_options(job, Launcher(kind="slurm"), 0, Exchange(tmp_path))
    assert not [option for option in plain if option.startswith(("--gres", "--partition", "--account", "--time"))]
    assert make_script(job) == f"#!/bin/sh\nexec {sys.executable} -m flows.run teacher internvl3\n"


def test_jobs_of_two_projects_and_of_two_stages_have_different_names(job: Job, root: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    names = {name_job(job), name_job(replace(job, root=tmp_path)), name_job(replace(job, item="qwen2_5_vl"))}
    assert len(names) == 3


def test_a_job_gets_no_variable_that_belongs_to_this_machine_or_to_the_job_around_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    user = {"HOME": "/home/u", "RIL_STORE": "/shared/store", "SLURM_CONF": "/etc/slurm.conf", "OMP_NUM_THREADS": "6",
            "SBATCH_ACCOUNT": "lab", "TMPDIR": "/scratch"}  # fmt: skip
    here = {"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "3", "PMI_RANK": "0"}
    set_here = {name: value for name, value in list_missing_variables(user | here).items() if name != "no_proxy"}
    made = make_job_environment(user | here | set_here, tmp_path)
    assert here.keys().isdisjoint(made)
    assert user.items() <= made.items()
    assert "DS_ACCELERATOR" in set_here, "this machine has no GPU"
    assert not {"DS_ACCELERATOR", "TORCHDYNAMO_DISABLE", "VLLM_CPU_OMP_THREADS_BIND"} & made.keys()
    assert made["RIL_JOB"] == str(tmp_path)


def test_checkpoints_and_answers_are_progress(job: Job) -> None:
    before = measure_progress(job)
    assert before == (0, 0)
    answers = job.store / "responses" / "set" / "00000000000000000001-01234567.parquet"
    answers.parent.mkdir(parents=True)
    answers.write_bytes(b"1234")
    assert measure_progress(job) > before
    before = measure_progress(job)
    done = job.store / "runs" / job.name / "0123" / "step_00000040" / "DONE"
    done.parent.mkdir(parents=True)
    done.touch()
    assert measure_progress(job) == (40, 4) > before
