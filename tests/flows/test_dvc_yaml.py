"""dvc.yaml says to DVC what stages/config/table.py says to the stages: for the default and every profile, key by
key.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from flows.closure import list_code_dependencies
from flows.jobs import open_job
from flows.profile import find_profiles
from stages.config.params import load_params
from stages.config.plain import BANNED_NAMES
from stages.config.table import STAGES
from stages.config.yaml import read_yaml
from stages.job.job import Job

PROFILES = [None, *find_profiles(Path(__file__).parents[2])]


@pytest.fixture(params=PROFILES, ids=lambda name: name or "default")
def project(request: pytest.FixtureRequest, make_project: Callable[..., Path], root: Path) -> Path:
    """A project with a profile applied."""
    folder = make_project(read_yaml(find_profiles(root)[request.param]) if request.param else {})
    Repo.init(str(folder), no_scm=True).close()
    return folder


def resolved(project: Path) -> dict[str, Any]:
    """The stages as DVC understands them, by their names."""
    with Repo(str(project)) as repo:
        return {stage.name: stage for stage in repo.index.stages}


def jobs(project: Path) -> dict[str, Job]:
    """The stages as the table declares them, by their names."""
    params = load_params(project / "params.yaml")
    found = {}
    for name, stage in STAGES.items():
        for item in getattr(params, stage.items) if stage.items else [None]:
            job = open_job(name, item, project, params)
            found[job.name] = job
    return found


def test_dvc_yaml_equals_the_table(project: Path) -> None:
    in_dvc, in_table = resolved(project), jobs(project)
    assert set(in_dvc) == set(in_table)
    for name, stage in in_dvc.items():
        job = in_table[name]
        plain = {dep.def_path for dep in stage.deps if not hasattr(dep, "params")}
        code = set(list_code_dependencies(project, job.stage))
        assert plain == code | {str(path.relative_to(project)) for path in job.inputs}, name
        tracked = {key for dep in stage.deps if hasattr(dep, "params") for key in dep.params}
        assert tracked == {key.format(item=job.item) for key in job.definition.params}, name
        assert stage.cmd == f"exec python -m flows.run {job.stage}"
        assert stage.desc == job.definition.title
        assert {out.def_path: out.use_cache for out in stage.outs} == expected_outs(job, project), name


def expected_outs(job: Job, project: Path) -> dict[str, bool]:
    """Paths of a stage's outs, and whether DVC caches them."""
    if job.stage == "report":
        return {"reports/report/index.html": True, "reports/report/metrics.json": False}
    reports = str(job.reports.relative_to(project))
    outs = {str(job.out.relative_to(project)): True, f"{reports}/metrics.json": False}
    if job.stage in ("warm_start", "discriminator", "ril"):
        outs[f"{reports}/history.csv"] = False
    if job.stage == "ril":
        outs[f"{reports}/validation.csv"] = False
    return outs


@pytest.mark.parametrize(
    ("block", "stages"),
    [
        ("ril", {"ril", "report"}),
        ("rewards", {"ril", "report"}),  # switches of the objective
        ("objective", {"ril", "report"}),
        ("discriminator", {"discriminator", "ril", "report"}),
        ("warm_start", {"warm_start"}),
        ("teacher", {"teacher", "report"}),
        ("rollout", {"rollout"}),
        ("pool", {"pool", "report"}),
        ("questions", {"questions"}),
        ("evaluate", {"evaluate", "report"}),
        ("params", set()),
        ("table", set()),
    ],
)
def test_a_new_key_of_a_block_makes_stale_who_reads_the_block(root: Path, block: str, stages: set[str]) -> None:
    file = f"stages/config/{block}.py"
    assert {name for name in STAGES if file in list_code_dependencies(root, name)} == stages


def test_every_tracked_parameter_exists(project: Path) -> None:
    values = read_yaml(project / "params.yaml")
    for name, stage in resolved(project).items():
        for key in [key for dep in stage.deps if hasattr(dep, "params") for key in dep.params]:
            value: Any = values
            for part in key.split("."):
                assert part in value, f"{name}: {key}"
                value = value[part]


def test_dvc_yaml_avoids_what_breaks_dvc(root: Path) -> None:
    text = (root / "dvc.yaml").read_text()
    tree = yaml.safe_load(text)
    assert "persist" not in text  # turns the run cache off
    assert "always_changed" not in text
    plain = [out for stage in tree["stages"].values() for out in stage.get("do", stage)["outs"]]
    assert all(isinstance(out, str) for out in plain)  # cache: false on a plain out turns the run cache off too
    keys = [key for stage in tree["stages"].values() for key in stage.get("do", stage)["params"]]
    assert not [key for key in keys if set(key.split(".")) & set(BANNED_NAMES)]
