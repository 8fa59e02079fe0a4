"""Stage `questions`: canonical rows from the tiny world and from users' files, rejects with reasons, splits without
overlap.
"""

import io
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from PIL import Image

from flows.jobs import open_job
from stages import questions
from stages.config.params import validate_params
from stages.config.questions import Questions
from stages.config.yaml import merge_params, read_yaml
from stages.corpora import adapters
from stages.corpora.reject_log import writing_rejects
from stages.corpora.rows import make_canonical_row, read_questions
from stages.corpora.source import UnusableData
from stages.corpora.spool import RowSpool
from stages.job.job import Job

SPLITS = {"warm_start": 12, "imitation": 6, "validation": 3, "test": 5}


def job_for(root: Path, overlay: Mapping[str, Any], project: Path) -> Job:
    params = validate_params(merge_params(read_yaml(project / "params.yaml"), overlay))
    return open_job("questions", None, root, params)


def test_world_splits_share_no_picture_and_load_in_datasets(tmp_path: Path, root: Path) -> None:
    questions.run(job_for(tmp_path, {"questions": {"splits": SPLITS}}, root))
    images: set[str] = set()
    for split, count in SPLITS.items():
        rows = read_questions(tmp_path / "data/questions", split)
        assert len(rows) == count
        own = {image for row in rows for image in row.image_sha256}
        assert len(own) == count
        assert not own & images
        images |= own
        assert all((row.target is not None) == (split in ("warm_start", "imitation")) for row in rows)
    files = str(tmp_path / "data/questions/test/*.parquet")
    loaded = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == SPLITS["test"]
    assert loaded[0]["messages"][0]["role"] == "user"


def test_same_parameters_same_bytes(tmp_path: Path, root: Path) -> None:
    for name in ("a", "b"):
        questions.run(job_for(tmp_path / name, {"questions": {"splits": SPLITS}}, root))
    one, other = (sorted((tmp_path / name / "data").rglob("*.parquet")) for name in ("a", "b"))
    assert len(one) == 4
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in other]


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (colour, 40, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def llava_file(folder: Path, rows: int) -> list[dict[str, Any]]:
    (folder / "images").mkdir(parents=True)
    made = []
    for number in range(rows):
        (folder / f"images/{number}.png").write_bytes(png(number))
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"colour {number}"}]
        made.append({"id": f"q{number}", "image": f"{number}.png", "conversations": turns})
    return made


def test_the_bytes_do_not_depend_on_the_number_of_cores(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[bytes]] = []
    threads: list[set[str]] = []
    check = adapters.check_row

    def record_thread(*given: Any) -> Any:
        threads[-1].add(threading.current_thread().name)
        return check(*given)

    monkeypatch.setattr(adapters, "check_row", record_thread)
    for cores in (1, 5):
        folder = tmp_path / str(cores)
        rows = llava_file(folder, 100)
        for number in range(5, 100, 9):
            rows[number]["image"] = "missing.png"
            rows[number - 1]["id"] = "twice"
        (folder / "rows.json").write_text(json.dumps(rows))
        monkeypatch.setattr(adapters, "count_cores", lambda cores=cores: cores)
        threads.append(set())
        questions.run(job_for(folder, llava_overlay(max_reject_share=0.5), root))
        files = [*sorted((folder / "data").rglob("*.parquet")), folder / "reports/questions/rejects.jsonl"]
        made.append([file.read_bytes() for file in files])
    assert len(threads[0]) == 1 < len(threads[1])
    assert made[0] == made[1]
    assert len(made[0]) == 5


def llava_overlay(**more: Any) -> dict[str, Any]:
    given = {"kind": "llava", "path": "rows.json", "images": "images", "splits": SPLITS, **more}
    return {"questions": given}


def test_llava_rows_keep_their_bytes_and_rejects_say_why(tmp_path: Path, root: Path) -> None:
    rows = llava_file(tmp_path, 30)
    (tmp_path / "images/1.png").write_bytes(b"\x89PNG broken")
    rows[2]["image"] = "missing.png"
    rows[3]["conversations"][0]["value"] = "no marker"
    rows[4]["conversations"] = rows[4]["conversations"][:1]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    questions.run(job_for(tmp_path, llava_overlay(max_reject_share=0.5), root))
    rejects = [json.loads(line) for line in (tmp_path / "reports/questions/rejects.jsonl").read_text().splitlines()]
    reasons = {reject["id"]: reject["reason"] for reject in rejects}
    assert set(reasons) == {"q1", "q2", "q3", "q4"}
    assert "unreadable image" in reasons["q1"]
    assert "missing.png" in reasons["q2"]
    assert "0 <image> markers" in reasons["q3"]
    assert "no reference answer" in reasons["q4"]
    kept = [row for split in SPLITS for row in read_questions(tmp_path / "data/questions", split)]
    assert all(row.images[0] == png(int(row.id[1:])) for row in kept)
    assert all(row.target is None for row in read_questions(tmp_path / "data/questions", "imitation"))


def test_too_many_rejects_stop_the_stage(tmp_path: Path, root: Path) -> None:
    rows = llava_file(tmp_path, 30)
    for row in rows[:10]:
        row["image"] = "missing.png"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(UnusableData, match=r"^10 rows: image 'missing.png': No such file.* unusable, more than "):
        questions.run(job_for(tmp_path, llava_overlay(splits={**SPLITS, "warm_start": 3}), root))


def test_rows_with_one_image_stay_in_one_split(tmp_path: Path, root: Path) -> None:
    rows = llava_file(tmp_path, 40)
    for number in range(0, 40, 2):
        rows[number + 1]["image"] = rows[number]["image"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    questions.run(
        job_for(tmp_path, llava_overlay(splits={"warm_start": 8, "imitation": 4, "validation": 2, "test": 4}), root)
    )
    owners: dict[str, str] = {}
    for split in SPLITS:
        for row in read_questions(tmp_path / "data/questions", split):
            assert owners.setdefault(row.image_sha256[0], split) == split


def test_too_few_rows_are_named(tmp_path: Path, root: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(llava_file(tmp_path, 5)))
    with pytest.raises(UnusableData, match=r"has 5 usable rows, questions.splits asks for 26; lower the splits"):
        questions.run(job_for(tmp_path, llava_overlay(), root))


def test_too_few_rows_come_with_the_commonest_reasons_and_all_rejects(tmp_path: Path, root: Path) -> None:
    rows = llava_file(tmp_path, 9)
    for number, row in enumerate(rows[:6]):
        row["image"] = f"missing{number}.png"
    rows[6]["conversations"][0]["from"] = "Human"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(UnusableData) as caught:
        questions.run(job_for(tmp_path, llava_overlay(), root))
    assert str(caught.value) == (
        "6 rows: image 'missing0.png': No such file or directory; correct the path; "
        "1 row: conversations.0.from = 'Human': should be 'human', 'gpt', 'system', 'user' or 'assistant'; "
        "rows.json has 2 usable rows, questions.splits asks for 26; lower the splits; "
        "all rejects: reports/questions/rejects.jsonl"
    )
    rejects = [json.loads(line) for line in (tmp_path / "reports/questions/rejects.jsonl").read_text().splitlines()]
    assert len(rejects) == 7
    shown = {"file": "rows.json", "field": "conversations.0.from", "value": "'Human'"}
    assert rejects[6] == {"row": 6, "id": "q6", "reason": rejects[6]["reason"], **shown}
    assert [(one["row"], one["field"]) for one in rejects[:6]] == [(row, "image") for row in range(6)]


def test_repeated_and_missing_ids_become_unique(tmp_path: Path, root: Path) -> None:
    rows = llava_file(tmp_path, 30)
    for number, given in {0: "a", 1: "a", 2: "a#2", 3: None, 4: "3", 5: "a", 6: 7}.items():
        rows[number]["id"] = given
    del rows[7]["id"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    questions.run(job_for(tmp_path, llava_overlay(splits=dict.fromkeys(SPLITS, 1)), root))
    spool = RowSpool(tmp_path)
    job = job_for(tmp_path, llava_overlay(), root)
    with writing_rejects(tmp_path / "rejects.jsonl") as log:
        assert questions.read_rows(job, job.block(Questions), spool, log) == {"repeated": 5, "missing": 2}
    assert (tmp_path / "rejects.jsonl").read_text() == ""
    read = [row for _, row in sorted(spool.iter_rows())]
    assert [row["id"] for row in read[:8]] == ["a", "a#2", "a#2#2", "3", "3#2", "a#3", "7", "7#2"]
    assert len({row["id"] for row in read}) == 30


def test_rows_wait_in_files_without_a_name_and_come_back_unchanged(tmp_path: Path) -> None:
    spool = RowSpool(tmp_path)
    rows = [make_canonical_row(f"{n}", [png(n), png(7)], [], "a", "s", "k") for n in range(5)]
    for place, row in enumerate(rows):
        spool.assign(spool.put(row, order=-place), "test")
    spool.put(make_canonical_row("other", [], [{"role": "user", "content": "?"}], "a", "s", "k"))
    assert all(image["bytes"] is None for _, row in spool.iter_rows() for image in row["images"])
    assert list(spool.iter_split("test")) == rows[::-1]
    assert [row["id"] for row in spool.iter_by_id()] == list("01234")
    assert (len(spool), spool.count_images("test"), spool.count_kinds("test")) == (6, 6, {"k": 5})
    assert spool.holds("other")
    assert not list(tmp_path.iterdir())  # the files have no name
