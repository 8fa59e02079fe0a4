"""A job gives a stage what the table lists for it, and nothing else."""

from pathlib import Path

import pytest

from stages.config.params import load_params
from stages.config.questions import Questions
from stages.config.ril import Ril
from stages.config.teacher import Teacher
from stages.config.world import World
from stages.job.job import Job, MissingInput, maker_of
from stages.job.progress import Progress
from stages.job.seeds import seed_for


@pytest.fixture
def job(root: Path, tmp_path: Path) -> Job:
    return Job("teacher", "internvl3", tmp_path, load_params(root / "params.yaml"), Progress())


def test_a_stage_gets_the_block_of_its_item(job: Job) -> None:
    assert job.block(Teacher).model == "internvl3"


def test_a_block_that_is_not_declared_is_refused(job: Job) -> None:
    with pytest.raises(PermissionError, match="stage teacher reads parameter ril, which it does not declare"):
        job.block(Ril)


def test_a_seed_is_only_for_stages_that_declare_it(job: Job) -> None:
    with pytest.raises(PermissionError, match="seed"):
        job.seed("sampling")


def test_values_are_those_of_the_declared_keys(root: Path) -> None:
    job = Job("questions", None, root, load_params(root / "params.yaml"), Progress())
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
def test_the_maker_of_a_path_is_its_stage(path: str, target: str) -> None:
    assert maker_of(path) == target


def test_the_store_is_shared_by_experiments(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RIL_STORE", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert job.store == tmp_path / ".ril"
    monkeypatch.setenv("DVC_ROOT", "/main")
    assert job.store == Path("/main/.ril")
    monkeypatch.setenv("RIL_STORE", "/store")
    assert job.store == Path("/store")


def test_an_out_appears_whole_or_not_at_all(job: Job) -> None:
    with pytest.raises(FileNotFoundError), job.writing() as folder:
        (folder / "part").rename(folder / "nothing" / "part")
    assert not job.out.exists()
    assert list(job.out.parent.iterdir()) == []
    with job.writing() as folder:
        (folder / "part").write_text("1")
    assert [path.name for path in job.out.iterdir()] == ["part"]


def test_a_seed_depends_on_every_part_and_on_their_order() -> None:
    seeds = [
        seed_for(1, "a"),
        seed_for("a", 1),
        seed_for("1", "a"),
        seed_for(1, "a", 0),
        seed_for(2, "a"),
        seed_for("1a"),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(1, "a") == seeds[0]
