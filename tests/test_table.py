"""One name everywhere: stage = file = flow = block of params = block of dvc.yaml = folder in data/ and reports/."""

from pathlib import Path

import pytest

from flows.closure import find_reached_files
from flows.jobs import open_job
from stages.config.params import Params, load_params
from stages.config.table import STAGES


def test_every_stage_is_a_file_that_exports_run(root: Path) -> None:
    files = {path.stem for path in (root / "stages").glob("*.py")} - {"__init__"}
    assert files == set(STAGES)
    for name in STAGES:
        assert "\ndef run(job: Job) -> None:" in (root / "stages" / f"{name}.py").read_text(), name


def test_every_stage_has_a_block_of_parameters() -> None:
    for name, stage in STAGES.items():
        assert (stage.items or name) in Params.model_fields, name


def test_every_declared_parameter_and_part_exists(root: Path) -> None:
    for stage in STAGES.values():
        for key in stage.params:
            block, _, item = key.partition(".")
            assert block in Params.model_fields
            assert item in ("", "{item}") or item in Params.model_fields[block].annotation.model_fields  # type: ignore[union-attr]


def test_every_folder_of_stages_is_a_part_of_some_stage(root: Path) -> None:
    folders = {path.parent.name for path in (root / "stages").glob("*/__init__.py")}
    reached = {
        path.parts[1] for name in STAGES for path in find_reached_files(root, f"stages.{name}") if len(path.parts) > 2
    }
    assert folders == reached


def test_runtime_is_no_parameter_of_any_stage() -> None:
    assert not [name for name, stage in STAGES.items() if any(key.startswith("runtime") for key in stage.params)]


def test_inputs_come_from_stages_that_run_before(root: Path) -> None:
    params = load_params(root / "params.yaml")
    order = list(STAGES)
    for name, stage in STAGES.items():
        items = list(getattr(params, stage.items)) if stage.items else [None]
        for item in items:
            job = open_job(name, item, root, params)
            for path in [path for path in job.paths if path.startswith(("data/", "reports/"))]:
                assert order.index(job.find_maker(path).split("@")[0]) < order.index(name), (job.name, path)
            assert job.out == root / "data" / name / (item or "")
            assert job.reports == root / "reports" / name / (item or "")


@pytest.mark.prefect
def test_every_stage_is_a_flow_of_the_same_name_and_says_the_same() -> None:
    from flows.catalog import stage_flow
    from flows.flow_run import perform

    for name, stage in STAGES.items():
        found = stage_flow(stage, perform)
        assert found.name == name
        assert found.description == f"{stage.title}."
        assert list(found.parameters.properties) == (["item"] if stage.items else []), name
