"""Which stages are jobs, and the GPUs that they ask for: those that the plan gives them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.checks.cluster import check_cluster
from flows.checks.gpus import count_claimed_gpus
from flows.estimate.cards import CARDS
from flows.estimate.models import find_models
from flows.estimate.plan import Given, plan_pipeline
from flows.jobs import list_runs
from flows.launcher import count_grace_seconds, find_launcher, running_on
from flows.profile import read_profile
from flows.slurm import request
from flows.slurm.request import count_job_gpus, loads_model_here, submits
from stages.config.params import Params, validate_params
from stages.config.runtime import Runtime
from stages.config.yaml import ParamsError, merge_params, read_yaml


@pytest.fixture(autouse=True)
def _own_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RIL_LAUNCHER", "RIL_JOB", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def make_params(root: Path, overlay: Mapping[str, Any], profile: str = "") -> Params:
    values = read_yaml(root / "params.yaml")
    if profile:
        values = merge_params(values, read_profile(root, profile))
    return validate_params(merge_params(values, overlay))


SLURM = {"runtime": {"launcher": {"kind": "slurm"}}}


def test_stages_with_a_model_are_jobs(root: Path) -> None:
    params = make_params(root, SLURM)
    jobs = {run for run in list_runs(params) if submits(params, run)}
    assert set(list_runs(params)) - jobs == {"questions", "selection", "pool", "report"}
    every = make_params(root, merge_params(SLURM, {"runtime": {"launcher": {"stages": "all"}}}))
    assert all(submits(every, run) for run in list_runs(every))
    assert not any(submits(make_params(root, {}), run) for run in list_runs(params)), "local by default"


def test_what_endpoints_servers_and_the_store_answer_loads_nothing(root: Path) -> None:
    engines = {
        "qwen2_5_vl": {"kind": "replay"},
        "internvl3": {"kind": "vllm_server", "urls": ["http://node3:8000"]},
    }
    params = make_params(root, merge_params(SLURM, {"runtime": {"engines": engines}}))
    assert not submits(params, "teacher@qwen2_5_vl")
    assert not submits(params, "teacher@internvl3")
    assert submits(params, "verdict@internvl3")
    rented = make_params(root, SLURM, "lora_1x24")
    assert not submits(rented, "teacher@qwen2_5_vl")
    assert not submits(rented, "model@qwen2_5_vl")
    assert submits(rented, "model@student"), "its weights are compared"
    assert submits(make_params(root, merge_params(SLURM, {"selection": {"top": 8}})), "selection")
    assert not submits(make_params(root, merge_params(SLURM, {"ril": {"objective": "dr_grpo"}})), "discriminator")


@pytest.mark.parametrize("profile", ["lora_1x80", "node_8x80", "paper"])
def test_a_job_asks_for_the_gpus_of_the_plan(profile: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "has_cpu_build", lambda: False)
    params = make_params(root, {}, profile)
    plan = plan_pipeline(params, Given(root, root / "no store", find_models(root, params), CARDS["80"]))
    for run in list_runs(params):
        planned, asked = plan.find(run).gpus, count_job_gpus(params, run)
        assert planned <= asked <= params.runtime.gpus, run
        assert asked >= count_claimed_gpus(params, run)[0], run
        assert (asked > 0) == loads_model_here(params, run), run
        if planned:
            assert asked == (params.runtime.gpus if run != "ril" else planned), run


def test_without_a_number_of_gpus_a_stage_asks_for_one_and_the_cpu_build_for_none(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(root, {"runtime": {"rank_gpus": {"warm_start": [0, 2]}}})
    for build, expected in ((True, (0, 3, 0)), (False, (1, 3, 0))):
        monkeypatch.setattr(request, "has_cpu_build", lambda build=build: build)
        assert tuple(count_job_gpus(params, run) for run in ("rollout", "warm_start", "pool")) == expected


def test_ranks_of_srun_and_the_stage_in_a_job_submit_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = make_params(root, SLURM)
    monkeypatch.setenv("RIL_JOB", "/somewhere")
    assert not submits(params, "ril")
    monkeypatch.delenv("RIL_JOB")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not submits(params, "ril")


def test_the_option_of_ril_run_stands_above_params(monkeypatch: pytest.MonkeyPatch) -> None:
    local, slurm = Runtime(), Runtime.model_validate(SLURM["runtime"])
    with running_on("slurm"):
        assert find_launcher(local).kind == "slurm"
        assert count_grace_seconds(local) == local.grace_seconds + 60
    with running_on("local"):
        assert find_launcher(slurm).kind == "local"
        assert count_grace_seconds(slurm) == slurm.grace_seconds
    with running_on(None):
        assert find_launcher(slurm).kind == "slurm"
    with pytest.raises(ParamsError, match="--on is 'moon'; take one of local, slurm"), running_on("moon"):
        pass
    monkeypatch.setenv("RIL_LAUNCHER", "moon")
    with pytest.raises(ParamsError, match="RIL_LAUNCHER is 'moon'"):
        find_launcher(local)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--wrap=rm -r x", "not passed on to sbatch"),
        ("--mem", None),
        ("--mem=64G", None),
        ("--constraint=a100&nvlink", None),
        ("-p", "not passed on to sbatch"),
        ("script.sh", "not passed on to sbatch"),
        ("--partition=gpu", "set runtime.launcher.partition instead"),
        ("--time=1:00", "set runtime.launcher.hours instead"),
        ("--gres=gpu:4", "the GPUs that runtime names"),
        ("--nodes=2", "srun by hand"),
        ("--wra=x", "not passed on to sbatch"),
        ("--mem=1\n--wrap=x", "which is not printable"),
        ("--export=NONE", "not passed on to sbatch"),
    ],
)
def test_options_of_sbatch_are_those_that_change_no_command(argument: str, said: str | None, root: Path) -> None:
    overlay = {"runtime": {"launcher": {"arguments": [argument]}}}
    if said is None:
        assert make_params(root, overlay).runtime.launcher.arguments == (argument,)
        return
    with pytest.raises(ParamsError) as error:
        make_params(root, overlay)
    assert "runtime.launcher.arguments" in str(error.value)
    assert said in str(error.value)


def test_where_nobody_can_submit_it_is_said_before_the_start(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    params = make_params(root, SLURM)
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = check_cluster(params, ["pool", "ril", "rollout"])
    assert found.state == "missing"
    assert str(found).endswith("sbatch, squeue, scontrol, scancel is not here; run it on a machine that submits jobs, "
                               "or with ril run --on local")  # fmt: skip
    assert found.stages == ("ril", "rollout")
    assert [one.state for one in check_cluster(params, ["pool"])] == ["note"]
    assert list(check_cluster(make_params(root, {}), ["ril"])) == []
