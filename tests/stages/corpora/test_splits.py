"""Stage `questions` with data that have splits of their own: what goes where, what leaves, and what is said of it."""

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from flows.jobs import open_job
from flows.ui.forms import check_values, make_forms
from stages import questions
from stages.config.params import Params, validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml
from stages.corpora.rows import read_questions
from stages.corpora.source import UnusableData

SPLITS = ("warm_start", "imitation", "validation", "test")
Rows = list[dict[str, Any]]
Stage = Callable[..., Path]


def draw(seed: int, quality: int = 95) -> bytes:
    """A picture of soft colours, unlike those of other seeds."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((50, 40), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def make_rows(folder: Path, name: str, count: int, first: int = 0) -> Rows:
    """Rows of different pictures, which are written."""
    (folder / "d").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        picture = f"{name}{number}.jpg"
        (folder / "d" / picture).write_bytes(draw(first + number))
        rows.append({"id": f"{name}-{number}", "image": picture, "question": f"What is {number}?", "answer": "it"})
    return rows


def write_rows(folder: Path, name: str, rows: Rows) -> None:
    (folder / "d" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def stage(root: Path) -> Stage:
    """Runs the stage in a folder with these sources; returns the folder of its reports."""

    def run(folder: Path, sources: Sequence[Mapping[str, Any]], **more: Any) -> Path:
        block = {"kind": "sources", "path": "d", "images": "d", "sources": list(sources), "max_reject_share": 0.2}
        params = validate_params(merge_params(read_yaml(root / "params.yaml"), {"questions": {**block, **more}}))
        questions.run(open_job("questions", None, folder, params))
        return folder / "reports/questions"

    return run


def count(warm_start: Any, imitation: Any, validation: Any, test: Any) -> dict[str, Any]:
    return dict(zip(SPLITS, (warm_start, imitation, validation, test), strict=True))


def list_ids(folder: Path) -> dict[str, list[str]]:
    return {split: [one.id for one in read_questions(folder / "data/questions", split)] for split in SPLITS}


def read_lines(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_test_split_of_ones_own_is_kept_and_its_images_leave_training(
    tmp_path: Path, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = make_rows(tmp_path, "a", 40), make_rows(tmp_path, "t", 12, first=500)
    train[3]["image"] = test[5]["image"]
    train[7]["answer"] = None
    (tmp_path / "d/a9.jpg").write_bytes(draw(502, quality=80))  # nearly that of t-2
    write_rows(tmp_path, "train.jsonl", train)
    write_rows(tmp_path, "test.jsonl", test)
    reports = stage(tmp_path, [{"path": "d/train.jsonl"}, {"path": "d/test.jsonl"}], splits=count("all", 6, 4, "all"))
    placed = list_ids(tmp_path)
    assert sorted(placed["test"]) == sorted(row["id"] for row in test)
    assert {split: len(names) for split, names in placed.items()} == count(28, 6, 4, 12)
    assert not {"a-3", "a-7"} & {name for names in placed.values() for name in names}
    conflict, fault = sorted(read_lines(reports / "rejects.jsonl"), key=lambda line: line["row"])
    assert {key: conflict[key] for key in ("file", "row", "id", "field")} == {
        "file": "d/train.jsonl",
        "row": 3,
        "id": "a-3",
        "field": "images",
    }
    assert conflict["reason"] == "its image is in split test, too; the rows of test are kept"
    assert (fault["row"], fault["field"]) == (7, "answer")
    (near,) = read_lines(reports / "near_duplicates.jsonl")
    assert (near["question"], near["held_out_question"], near["split"]) == ("a-9", "t-2", "test")
    metrics = json.loads((reports / "metrics.json").read_text())
    assert metrics["near_duplicates"] == {"images": 1, "held_out": {"test": 1, "validation": 0}}
    assert metrics["sources"] == {
        "d/train.jsonl": {"rows": 40, "rejects": 2, "unused": 0, **count(28, 6, 4, 0)},
        "d/test.jsonl": {"rows": 12, "rejects": 0, "unused": 0, **count(0, 0, 0, 12)},
    }
    assert (metrics["rejects"], metrics["unused"], metrics["ids"]) == (2, 0, {"repeated": 0, "missing": 0})
    said = capsys.readouterr().err
    assert "1 images for training are nearly images of held-out splits (1 of test); questions.near_duplicates: " in said
    assert "d/train.jsonl  40    2        0       28" in said


def test_near_duplicates_are_dropped_and_others_take_their_places(tmp_path: Path, stage: Stage) -> None:
    train, test = make_rows(tmp_path, "a", 30), make_rows(tmp_path, "t", 10, first=500)
    for number in range(10):
        (tmp_path / f"d/a{number}.jpg").write_bytes(draw(500 + number, quality=80))
    write_rows(tmp_path, "train.jsonl", train)
    write_rows(tmp_path, "test.jsonl", test)
    sources = [{"path": "d/train.jsonl"}, {"path": "d/test.jsonl"}]
    near = {f"a-{number}" for number in range(10)}
    given = {"splits": count(12, 6, 2, 10), "near_duplicates": "drop", "max_reject_share": 0}
    reports = stage(tmp_path, sources, **given)
    placed = list_ids(tmp_path)
    assert {split: len(names) for split, names in placed.items()} == given["splits"]
    assert not near & {*placed["warm_start"], *placed["imitation"]}
    rejects = read_lines(reports / "rejects.jsonl")
    assert {line["id"] for line in rejects} <= near
    assert all("is nearly image" in line["reason"] and "of split test" in line["reason"] for line in rejects)
    with pytest.raises(UnusableData) as caught:
        stage(tmp_path, sources, **{**given, "splits": count(18, 8, 2, 10)})
    text = str(caught.value)
    assert text.startswith("9 rows: its image is nearly image ")  # the tenth is drawn for validation
    assert "questions.sources: warm_start has 1" in text
    assert len(read_lines(reports / "rejects.jsonl")) == 9


def test_a_question_without_an_image_in_training_and_test_is_reported_or_dropped(
    tmp_path: Path, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [{"id": f"a{n}", "question": f"What is {n} and {n}?", "answer": "it"} for n in range(20)]
    test = [{"id": f"t{n}", "question": f"What  is {n} and\n{n}?", "answer": "this"} for n in range(17, 23)]
    (tmp_path / "d").mkdir()
    write_rows(tmp_path, "train.jsonl", train)
    write_rows(tmp_path, "test.jsonl", test)
    sources = [{"path": "d/train.jsonl"}, {"path": "d/test.jsonl"}]
    reports = stage(tmp_path, sources, splits=count(12, 6, 2, "all"))
    placed = list_ids(tmp_path)
    learned = {*placed["warm_start"], *placed["imitation"]}
    repeated = sorted(name for name in ("a17", "a18", "a19") if name in learned)
    assert len(learned) == 18
    assert len(repeated) >= 1  # two of twenty are for validation
    metrics = json.loads((reports / "metrics.json").read_text())
    wanted = {"questions": len(repeated), "held_out": {"validation": 0, "test": len(repeated)}}
    assert metrics["repeated_questions"] == wanted
    assert metrics["rejects"] == 0
    lines = {line["question"]: line for line in read_lines(reports / "near_duplicates.jsonl")}
    assert sorted(lines) == repeated
    number = repeated[0][1:]
    assert lines[f"a{number}"] == {
        "question": f"a{number}",
        "text": f"'What is {number} and {number}?'",
        "split": "test",
        "held_out_question": f"t{number}",
    }
    said = capsys.readouterr().err
    assert f"{len(repeated)} questions without an image are for training and held out ({len(repeated)} of test)" in said

    with pytest.raises(UnusableData, match=r"row.*: its question is in split test, too; questions.near_duplicates is"):
        stage(tmp_path, sources, splits=count(12, 6, 2, "all"), near_duplicates="drop")
    reports = stage(tmp_path, sources, splits=count(9, 6, 2, "all"), near_duplicates="drop", max_reject_share=0)
    placed = list_ids(tmp_path)
    assert not {"a17", "a18", "a19"} & {*placed["warm_start"], *placed["imitation"]}
    assert {split: len(names) for split, names in placed.items()} == count(9, 6, 2, 6)
    metrics = json.loads((reports / "metrics.json").read_text())
    assert metrics["repeated_questions"]["questions"] == 0
    assert all(line["field"] == "messages" for line in read_lines(reports / "rejects.jsonl"))


def test_drawn_questions_without_an_image_stay_together(tmp_path: Path, stage: Stage) -> None:
    rows = [{"id": f"q{n}", "question": f"What is {n % 15}?", "answer": str(n)} for n in range(45)]
    (tmp_path / "d").mkdir()
    write_rows(tmp_path, "all.jsonl", rows)
    reports = stage(tmp_path, [{"path": "d/all.jsonl"}], splits=count(9, 6, 3, 3))
    split_of = {int(name[1:]): split for split, names in list_ids(tmp_path).items() for name in names}
    assert len(split_of) == 21
    for asked in range(15):
        assert len({split for number, split in split_of.items() if number % 15 == asked}) <= 1
    assert json.loads((reports / "metrics.json").read_text())["repeated_questions"]["questions"] == 0


def test_sources_are_mixed_limited_and_filtered(tmp_path: Path, stage: Stage) -> None:
    for place, name in enumerate("abc"):
        rows = make_rows(tmp_path, name, 30, first=1000 * place)
        for number, row in enumerate(rows):
            row["lang"] = "de" if number % 3 else "en"
        write_rows(tmp_path, f"{name}.jsonl", rows)
    sources = [
        {"path": "d/a.jsonl", "into": "warm_start", "weight": 3.0},
        {"path": "d/b.jsonl", "into": "warm_start", "weight": 1.0},
        {"path": "d/c.jsonl", "filter": {"lang": "de"}, "limit": 9},
    ]
    reports = stage(tmp_path, sources, splits=count(20, 4, 2, 3))
    placed = list_ids(tmp_path)
    assert sorted(name[0] for name in placed["warm_start"]) == ["a"] * 15 + ["b"] * 5
    others = [name for split in SPLITS[1:] for name in placed[split]]
    assert len(others) == 9
    assert all(name[0] == "c" and int(name[2:]) % 3 for name in others)
    metrics = json.loads((reports / "metrics.json").read_text())
    assert metrics["sources"]["d/c.jsonl"] == {"rows": 20, "rejects": 0, "unused": 11, **count(0, 4, 2, 3)}
    assert metrics["sources"]["d/a.jsonl:warm_start"]["unused"] == 15
    with pytest.raises(UnusableData) as caught:
        stage(tmp_path, sources, splits=count(44, 4, 2, 4))
    assert str(caught.value) == (
        "questions.sources: warm_start has 30 of 33 rows of d/a.jsonl:warm_start, as its weight asks, test has 3 of "
        "4 rows; lower the splits, or write all for a split that shall have all rows of its own"
    )


def test_the_order_of_rows_files_and_sources_changes_nothing(tmp_path: Path, stage: Stage) -> None:
    made = []
    for turn in range(2):
        folder = tmp_path / str(turn)
        rows = make_rows(folder, "a", 24)
        for number in range(0, 8, 2):
            rows[number]["id"] = rows[number + 1]["id"] = "same"
        files = {"one.jsonl": rows[:13], "two.jsonl": rows[13:]}
        if turn:
            files = {"one.jsonl": rows[:4:-1], "two.jsonl": rows[4::-1]}
        for name, part in files.items():
            for row in part:
                row["source"] = "mine"
            write_rows(folder, name, part)
        paths = [{"path": f"d/{name}", "into": "train"} for name in files]
        stage(folder, paths[:: 1 - 2 * turn], splits=count(10, 4, 2, 2))
        made.append([file.read_bytes() for file in sorted((folder / "data").rglob("*.parquet"))])
        metrics = json.loads((folder / "reports/questions/metrics.json").read_text())
        assert metrics["ids"] == {"repeated": 7, "missing": 0}
    assert made[0] == made[1]
    first = list_ids(tmp_path / "0")
    stage(tmp_path / "0", paths, splits=count(10, 4, 2, 2), seed=1)
    assert list_ids(tmp_path / "0") != first


def test_rows_for_tests_alone_are_never_trained_on(tmp_path: Path, stage: Stage) -> None:
    write_rows(tmp_path, "test.jsonl", make_rows(tmp_path, "t", 12))
    with pytest.raises(UnusableData) as caught:
        stage(tmp_path, [{"path": "d/test.jsonl", "into": "test"}], splits=count(2, 1, 1, "all"))
    assert str(caught.value) == (
        "questions.sources: warm_start has 0 of 2 rows, imitation has 0 of 1 rows, validation has 0 of 1 rows; lower "
        "the splits; all rows belong to test: give rows for training (into: train)"
    )
    assert not (tmp_path / "data/questions").exists()


def test_rejects_are_written_before_a_file_that_cannot_be_read(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(tmp_path, "a", 150)
    rows[2]["answer"] = None
    write_rows(tmp_path, "a.jsonl", rows)
    (tmp_path / "d/b.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UnusableData, match=r"b\.parquet"):
        stage(tmp_path, [{"path": "d/a.jsonl"}, {"path": "d/b.parquet"}], splits=count(2, 1, 1, 1))
    monkeypatch.setattr(questions, "list_guesses", lambda *_: {})  # else it is noticed before any row is read
    with pytest.raises(UnusableData, match=r"b\.parquet"):
        stage(tmp_path, [{"path": "d/a.jsonl"}, {"path": "d/b.parquet"}], splits=count(2, 1, 1, 1))
    assert [line["row"] for line in read_lines(tmp_path / "reports/questions/rejects.jsonl")] == [2]


def test_a_number_of_questions_is_a_number_or_all(root: Path) -> None:
    values = read_yaml(root / "params.yaml")
    for wrong in ("most", -1, 1.5, True):
        with pytest.raises(ParamsError) as caught:
            validate_params(merge_params(values, {"questions": {"splits": {"test": wrong}}}))
        (line,) = str(caught.value).splitlines()
        assert line.startswith("params.yaml: questions.splits.test")
    assert validate_params(merge_params(values, {"questions": {"splits": {"imitation": 400}}})).questions.seed == 0


def test_the_world_has_no_end(root: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        validate_params(merge_params(read_yaml(root / "params.yaml"), {"questions": {"splits": {"test": "all"}}}))
    assert str(caught.value) == (
        "params.yaml: questions: splits.test is all, but the tiny world has no end; write a number"
    )


def test_forms_offer_the_list_of_sources_with_all_its_keys(make_project: Callable[..., Path]) -> None:
    sources = [{"path": "mine/train.jsonl", "into": "train", "weight": 2.0}, {"path": "mine/test", "limit": 5}]
    block = {"kind": "sources", "path": "mine", "images": "mine", "sources": sources}
    project = make_project({"questions": {**block, "splits": {"test": "all"}, "near_duplicates": "drop"}})
    (form,) = [one for one in make_forms(project) if one.target == "questions"]
    check_values(form, {"settings": form.values})
    shown = form.values["questions"]
    assert [one["into"] for one in shown["sources"]] == ["train", None]
    assert shown["splits"]["test"] == "all"
    for fault in ({"into": "dev"}, {"limit": 0}, {"weight": 0}, {"wieght": 1}):
        values = {"settings": {"questions": {**shown, "sources": [{"path": "mine", **fault}]}}}
        with pytest.raises(ParamsError):
            check_values(form, values)
    assert {"into", "limit", "weight", "filter"} <= Params.model_json_schema()["$defs"]["Source"]["properties"].keys()


@pytest.mark.slow
def test_the_page_about_splits_works_as_it_says(
    root: Path, make_project: Callable[..., Path], call: Callable[..., tuple[int, str, str]]
) -> None:
    """The block of docs/data.md with `ril params check` and `python -m flows.run questions`, then a shortage."""
    section = (root / "docs/data.md").read_text(encoding="utf-8").partition("## Splits, mixing, rejects")[2]
    block = yaml.safe_load(section.partition("```yaml")[2].partition("```")[0])["questions"]
    project = make_project({"questions": block})
    rows = {name: make_rows(project, name, 60, first=1000 * place) for place, name in enumerate(("charts", "photos"))}
    rows["test"] = make_rows(project, "test", 9, first=7000)
    rows["charts"][4]["image"] = rows["test"][8]["image"]
    for number, row in enumerate(rows["photos"]):
        row["language"] = "fr" if number % 4 == 0 else "en"
    for name, made in rows.items():
        write_rows(project, f"{name}.jsonl", made)
    (project / "datasets").mkdir()
    (project / "d").rename(project / "datasets/mixed")
    assert call(project, "flows.cli.main", "params", "check")[0] == 0
    code, _, said = call(project, "flows.run", "questions")
    assert code == 0, said
    placed = list_ids(project)
    assert {split: len(names) for split, names in placed.items()} == {**block["splits"], "test": 9}
    for split, shares in {"warm_start": (30, 10), "imitation": (15, 5), "validation": (6, 2)}.items():
        assert tuple(sum(name.startswith(of) for name in placed[split]) for of in ("charts", "photos")) == shares
    assert [line["id"] for line in read_lines(project / "reports/questions/rejects.jsonl")] == ["charts-4"]
    assert "datasets/mixed/test.jsonl:test     9" in said
    for row in rows["photos"][:50]:
        row["answer"] = None
    (project / "datasets/mixed/photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows["photos"]))
    code, _, said = call(project, "flows.run", "questions")
    assert code == 2
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "error" in line]
    assert line.startswith("error: 37 rows: no reference answer; ")
    assert re.search(r"warm_start has \d of 10 rows of datasets/mixed/photos.jsonl:train, as its weight asks", line)
    assert len(read_lines(project / "reports/questions/rejects.jsonl")) == 38
