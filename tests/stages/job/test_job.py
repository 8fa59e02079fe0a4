"""A job gives a stage what the table lists for it, and nothing else."""

from pathlib import Path

import pytest

from flows.jobs import open_job
from stages.config.params import load_params
from stages.config.questions import Questions
from stages.config.ril import Ril
from stages.config.runtime import Runtime
from stages.config.teacher import Teacher
from stages.config.world import World
from stages.job.job import Job, MissingInput
from stages.job.seeds import derive_seed


@pytest.fixture
def job(root: Path, tmp_path: Path) -> Job:
    return open_job("teacher", "internvl3", tmp_path, load_params(root / "params.yaml"))


def test_a_stage_gets_the_block_of_its_item(job: Job) -> None:
    assert job.block(Teacher).model == "internvl3"


def test_a_block_that_is_not_declared_is_refused(job: Job) -> None:
    with pytest.raises(PermissionError, match="stage teacher reads block Ril, which it does not declare"):
        job.block(Ril)


def test_only_a_stage_that_declares_a_plural_block_as_a_whole_gets_all_of_it(job: Job, root: Path) -> None:
    with pytest.raises(PermissionError, match="stage teacher reads all blocks Teacher, which it does not declare"):
        job.blocks(Teacher)
    report = open_job("report", None, root, load_params(root / "params.yaml"))
    assert list(report.blocks(Teacher)) == ["qwen2_5_vl", "internvl3"]
    with pytest.raises(PermissionError, match="stage report reads block Teacher"):
        report.block(Teacher)


def test_a_declared_key_inside_a_block_is_all_that_a_stage_gets_of_it(root: Path) -> None:
    job = open_job("discriminator", None, root, load_params(root / "params.yaml"))
    assert job.value("ril.objective") == "ril"
    with pytest.raises(PermissionError, match="stage discriminator reads block Ril"):
        job.block(Ril)
    with pytest.raises(PermissionError, match=r"stage discriminator reads parameter ril\.steps"):
        job.value("ril.steps")


def test_every_stage_gets_the_runtime_which_is_no_value_of_its(job: Job) -> None:
    assert job.block(Runtime).processes == 1
    assert list(job.values) == ["teachers.internvl3"]


def test_a_seed_is_only_for_stages_that_declare_it(job: Job) -> None:
    with pytest.raises(PermissionError, match="seed"):
        job.seed("sampling")


def test_values_are_those_of_the_declared_keys(root: Path) -> None:
    job = open_job("questions", None, root, load_params(root / "params.yaml"))
    assert list(job.values) == ["world", "questions"]
    assert job.block(Questions).splits["test"] == job.values["questions"]["splits"]["test"]
    assert job.block(World).seed == 0


def test_a_missing_input_names_the_stage_that_makes_it(job: Job) -> None:
    with pytest.raises(MissingInput, match=r"data/model/internvl3 is missing; make it with: dvc repro model@internvl3"):
        job.input("data/model/internvl3")


def test_an_input_that_is_not_declared_is_refused(job: Job) -> None:
    with pytest.raises(PermissionError, match="data/pool"):
        job.input("data/pool")


@pytest.mark.parametrize(
    ("path", "target"),
    [("data/teacher/x", "teacher@x"), ("data/teacher", "teacher"), ("data/ril", "ril"), ("reports/ril", "ril")],
)
def test_the_maker_of_a_path_is_its_stage(job: Job, path: str, target: str) -> None:
    assert job.find_maker(path) == target


def test_an_out_appears_whole_or_not_at_all(job: Job) -> None:
    with pytest.raises(FileNotFoundError), job.writing() as folder:
        (folder / "part").rename(folder / "nothing" / "part")
    assert not job.out.exists()
    assert list(job.out.parent.iterdir()) == []
    with job.writing() as folder:
        (folder / "part").write_text("1")
    assert [path.name for path in job.out.iterdir()] == ["part"]


def test_what_killed_runs_left_goes_and_that_of_other_items_stays(job: Job) -> None:
    own, other = job.out.with_name(".internvl3.4242.partial"), job.out.with_name(".qwen2_5_vl.4242.partial")
    for folder in (own, other, job.out, job.reports):
        folder.mkdir(parents=True)
        (folder / "part").write_text("1")
    (job.reports / ".metrics.json.0123456789abcdef.partial").write_text("{")
    job.remove_unfinished()
    assert sorted(path.name for path in job.out.parent.iterdir()) == [other.name, "internvl3"]
    assert [path.name for path in job.reports.iterdir()] == ["part"]


def test_a_seed_depends_on_every_part_and_on_their_order() -> None:
    seeds = [
        derive_seed(1, "a"),
        derive_seed("a", 1),
        derive_seed("1", "a"),
        derive_seed(1, "a", 0),
        derive_seed(2, "a"),
        derive_seed("1a"),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, "a") == seeds[0]
