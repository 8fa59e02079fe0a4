"""A selection from the warm start's questions, with real engines: all later stages work on the kept questions only."""

import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.jobs import open_job
from stages import discriminator, pool, ril, rollout, selection, teacher, verdict
from stages.config.params import validate_params
from stages.config.yaml import merge_params, read_yaml
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row
from stages.job.files import read_json, read_shards, write_shards
from stages.vlm.checkpoint import Checkpoint

KEPT, COUNT = 3, 6
FEW = {"sampling": {"max_tokens": 8}, "responses": 2, "max_empty_share": 1.0, "max_same_share": 1.0}
OVERLAY: dict[str, Any] = {
    "selection": {"split": "warm_start", "top": KEPT, "teacher": "internvl3", "student": "data/model/student"},
    "teachers": {"internvl3": FEW},
    "rollout": FEW,
    "verdict": {"min_exam_accuracy": 0.0, "exam": False},
    "pool": {"teachers": ["internvl3"], "truncated": "keep", "max_empty_share": 1.0, "max_same_share": 1.0},
    "discriminator": {"responses_per_side": 1, "min_logit_spread": 0.0},
}


def write_splits(folder: Path) -> None:
    """Six questions in each split, with ids of their split; those of the warm start have a target."""
    for split in ("warm_start", "imitation", "validation"):
        rows = []
        for number in range(COUNT):
            buffer = io.BytesIO()
            Image.new("RGB", (84, 84), (40 * number, 9 * len(split), 0)).save(buffer, "PNG")
            turns = [{"role": "user", "content": f"<image>What is the sum of the digits {number}?"}]
            turns += [{"role": "assistant", "content": f"3:3, so {number}."}] if split == "warm_start" else []
            answer = f"{number}" * (number + 1)
            rows.append(make_canonical_row(f"{split}-{number}", [buffer.getvalue()], turns, answer, "test", "sum"))
        write_shards(folder / split, rows, QUESTION_SCHEMA)


@pytest.mark.slow
def test_later_stages_work_on_the_kept_questions_only(
    root: Path,
    tmp_path: Path,
    tiny: Callable[[str], Checkpoint],
    loop_params: Mapping[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    places = {"model/student": "qwen2_5_vl", "warm_start": "qwen2_5_vl", "model/internvl3": "internvl3"}
    for place, family in {**places, "model/judge": "qwen2_5"}.items():
        shutil.copytree(tiny(family).folder, tmp_path / "data" / place)
    write_splits(tmp_path / "data/questions")
    values = merge_params(merge_params(read_yaml(root / "params.yaml"), loop_params), OVERLAY)
    params = validate_params(values)

    def ids(path: str) -> set[str]:
        return {row.get("question_id") or row["id"] for row in read_shards(tmp_path / "data" / path).to_pylist()}

    selection.run(open_job("selection", None, tmp_path, params))
    kept = ids("selection/kept")
    assert len(kept) == KEPT
    assert all(name.startswith("warm_start-") for name in kept)
    scores = read_shards(tmp_path / "data/selection/scores").to_pylist()
    assert min(row["score"] for row in scores if row["id"] in kept) == sorted(row["score"] for row in scores)[-KEPT]
    assert read_json(tmp_path / "reports/selection/metrics.json")["scores"]["scored"] == COUNT

    teacher.run(open_job("teacher", "internvl3", tmp_path, params))
    verdict.run(open_job("verdict", "internvl3", tmp_path, params))
    pool.run(open_job("pool", None, tmp_path, params))
    rollout.run(open_job("rollout", None, tmp_path, params))
    for path in ("teacher/internvl3", "verdict/internvl3", "pool", "rollout"):
        assert ids(path) == kept, path

    finish_answers(tmp_path / "data")
    discriminator.run(open_job("discriminator", None, tmp_path, params))
    ril.run(open_job("ril", None, tmp_path, params))
    assert ids("ril/samples") <= kept


def finish_answers(data: Path) -> None:
    """Marks the answers as complete: models of random weights rarely end, and D learns from complete texts only."""
    rows = [{**row, "finish_reason": "stop"} for row in read_shards(data / "rollout").to_pylist()]
    write_shards(data / "rollout", rows, read_shards(data / "rollout").schema)
    rows = read_shards(data / "pool").to_pylist()
    for row in rows:
        row["answers"] = [{**answer, "finish_reason": "stop"} for answer in row["answers"]]
    write_shards(data / "pool", rows, read_shards(data / "pool").schema)
