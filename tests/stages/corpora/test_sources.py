"""Kind `sources`: every form in every container, without being told which; what was guessed; splits; columns."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from flows.jobs import open_job
from stages import questions
from stages.config.params import validate_params
from stages.config.questions import Questions
from stages.config.yaml import ParamsError, merge_params, read_yaml
from stages.corpora.formats.sources import list_guesses, open_source
from stages.corpora.rows import read_questions
from stages.corpora.source import UnusableData
from tests.stages.corpora.source_files import CONTAINERS, FORMS, ROWS, SPLITS, ask, block, draw, dump_lines, read


def show_image(kind: str, number: int) -> Any:
    content = draw(number)
    shown = {
        "path": f"pictures/{number}.png",
        "base64": "data:image/png;base64," + base64.b64encode(content).decode(),
        "struct": {"bytes": content, "path": None},
        "bytes": content,
    }
    return shown.get(kind)


def write(folder: Path, form: str, container: str) -> str:
    (folder / "pictures").mkdir()
    for number in range(ROWS):
        (folder / f"pictures/{number}.png").write_bytes(draw(number))
    kind, save = CONTAINERS[container]
    return save([FORMS[form](number, show_image(kind, number)) for number in range(ROWS)], folder)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_from_every_container(form: str, container: str, tmp_path: Path) -> None:
    path = write(tmp_path, form, container)
    rows, rejects = read(block(path, "pictures"), tmp_path)
    assert rejects == []
    assert len(rows) == ROWS
    shown = form != "text only" or container == "tar"
    for number, row in enumerate(rows):
        *before, asked, said = row["messages"]
        assert ask(number) in asked["content"]
        assert [turn["role"] for turn in (asked, said)] == ["user", "assistant"]
        assert said["content"] == row["answer"]
        assert [image["bytes"] for image in row["images"]] == ([draw(number)] if shown else [])
        assert sum(turn["content"].count("<image>") for turn in row["messages"]) == shown
        assert bool(before) == (form in ("sharegpt", "several pairs"))
        if form.startswith("options"):
            assert row["kind"] == "choice"
            assert f"{row['answer']}. {number}" in asked["content"] or row["answer"] == "A"
            assert row["answer"] == {"options in columns": "A", "options by text": "B"}.get(
                form, "B" if number else "A"
            )
        else:
            assert row["answer"] == str(number)
        assert row["answers"] == ([str(number), str(number), "many"] if form == "vqa of several answers" else None)


def test_guesses_name_form_and_columns_with_an_example(tmp_path: Path) -> None:
    path = write(tmp_path, "options by number", "jsonl")
    found = {one.field: one for one in list_guesses(block(path, "pictures"), tmp_path)["0: q.jsonl"]}
    assert found["form"].source == "choices"
    assert (found["question"].source, found["question"].example) == ("column question", ask(0))
    assert found["answer"].source == "column answer (options from 0)"
    assert found["images"].example == "pictures/0.png"


def overlay(**given: Any) -> dict[str, Any]:
    return {"questions": {"kind": "sources", "splits": SPLITS, "max_reject_share": 0.5, **given}}


def run_stage(root: Path, project: Path, block: dict[str, Any]) -> Path:
    job = open_job("questions", None, root, validate_params(merge_params(read_yaml(project / "params.yaml"), block)))
    questions.run(job)
    return job.reports


def test_the_stage_prints_and_writes_what_it_guessed_and_rejects_with_file_and_row(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "vqa", "jsonl")
    with (tmp_path / "q.jsonl").open("a") as file:
        file.write(json.dumps({"question": "How many?", "answer": None, "image": "pictures/0.png"}) + "\n")
    block = overlay(path="q.jsonl", images="pictures", sources=[{"path": "q.jsonl"}])
    reports = run_stage(tmp_path, root, block)
    assert (
        "source 0: q.jsonl: question: column question, such as What number is in picture 0?" in capsys.readouterr().err
    )
    fields = [one["field"] for one in json.loads((reports / "guesses.json").read_text())["0: q.jsonl"]]
    assert fields == ["files", "form", "id", "question", "answer", "images"]
    (reject,) = map(json.loads, (reports / "rejects.jsonl").read_text().splitlines())
    assert (reject["file"], reject["row"], reject["field"]) == ("q.jsonl", ROWS, "answer")
    assert all(read_questions(tmp_path / "data/questions", split) for split in SPLITS)


def vqa_lines(first: int, count: int) -> bytes:
    return dump_lines([{"question": ask(n), "answer": n} for n in range(first, first + count)])


def list_splits(folder: Path, path: str, **source: Any) -> dict[str | None, int]:
    given = block(path, path, **source)
    rows = [row.split for row in open_source(given.sources[0], given, folder).rows()]
    return {split: rows.count(split) for split in rows}


def test_splits_are_those_that_files_folders_and_saved_data_sets_name(tmp_path: Path) -> None:
    for name, count in (("train-0", 3), ("train-1", 2), ("dev", 2), ("test", 1)):
        (tmp_path / "named").mkdir(exist_ok=True)
        (tmp_path / f"named/{name}.jsonl").write_bytes(vqa_lines(count * 10, count))
    assert list_splits(tmp_path, "named") == {"validation": 2, "test": 1, "train": 5}
    assert list_splits(tmp_path, "named", split="val") == {"validation": 2}
    assert list_splits(tmp_path, "named/test.jsonl") == {None: 1}
    assert list_splits(tmp_path, "named/test.jsonl", split="test") == {"test": 1}
    with pytest.raises(UnusableData, match="no split 'extra'; there are validation, test, train"):
        list_splits(tmp_path, "named", split="extra")
    saved = {
        name: Dataset.from_list([{"question": "?", "answer": "a"}] * count) for name, count in (("a", 2), ("b", 1))
    }
    DatasetDict(saved).save_to_disk(tmp_path / "saved")
    assert list_splits(tmp_path, "saved") == {"a": 2, "b": 1}
    assert list_splits(tmp_path, "saved", split="b") == {"b": 1}


def test_a_readme_of_the_hub_says_which_files_a_subset_has(tmp_path: Path) -> None:
    (tmp_path / "set/data").mkdir(parents=True)
    for name in ("one", "two", "other"):
        (tmp_path / f"set/data/{name}.jsonl").write_bytes(vqa_lines(0, 2))
    configs = [
        {
            "config_name": "a",
            "data_files": [{"split": "train", "path": "data/one*"}, {"split": "x", "path": "data/two*"}],
        },
        {"config_name": "b", "data_files": "data/other.jsonl"},
    ]
    (tmp_path / "set/README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\ntext")
    assert list_splits(tmp_path, "set", subset="a") == {"train": 2, "x": 2}
    assert list_splits(tmp_path, "set", subset="b") == {"train": 2}
    with pytest.raises(UnusableData, match="has several subsets; set `subset` to one of a, b"):
        list_splits(tmp_path, "set")
    with pytest.raises(UnusableData, match="no subset 'c'; there are a, b"):
        list_splits(tmp_path, "set", subset="c")


def test_class_labels_and_image_features_of_datasets_are_read(tmp_path: Path) -> None:
    features = Features({"image": Image(), "question": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    rows = [{"image": {"bytes": draw(n), "path": None}, "question": ask(n), "label": n % 2} for n in range(4)]
    made = Dataset.from_list(rows, features=features)
    made.to_parquet(tmp_path / "t.parquet")
    made.save_to_disk(tmp_path / "saved")
    for path in ("t.parquet", "saved"):
        found, rejects = read(block(path), tmp_path)
        assert rejects == []
        assert [row["answer"] for row in found] == ["cat", "dog", "cat", "dog"]
        assert found[3]["images"][0]["bytes"] == draw(3)


def hub_block(**more: Any) -> Questions:
    source = {"hub": "someone/vqa", "revision": "a" * 40, **more}
    given = {"kind": "sources", "path": "here", "images": "here", "splits": SPLITS, "sources": [source]}
    return Questions.model_validate(given)


def test_a_hub_id_is_read_from_disk_and_fetched_only_if_downloads_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RIL_ALLOW_DOWNLOADS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    with pytest.raises(
        UnusableData, match=r"'someone/vqa' .*not on this machine, and downloads are off; set RIL_ALLOW"
    ):
        read(hub_block(), tmp_path)
    monkeypatch.setenv("RIL_ALLOW_DOWNLOADS", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnusableData, match=r"HF_HUB_OFFLINE forbids to ask the hub; unset it, or give its folder"):
        read(hub_block(), tmp_path)
    kept = tmp_path / f"cache/datasets--someone--vqa/snapshots/{'a' * 40}"
    (kept / "data").mkdir(parents=True)
    (kept / "data/train.jsonl").write_bytes(vqa_lines(0, 3))
    (kept / "data/test.jsonl").write_bytes(vqa_lines(3, 2))
    monkeypatch.delenv("RIL_ALLOW_DOWNLOADS")
    assert [row["answer"] for row in read(hub_block(split="test"), tmp_path)[0]] == ["3", "4"]


def test_other_kinds_name_this_one_where_they_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(vqa_lines(0, 2))
    pq.write_table(pa.table({"question": ["?"], "answer": ["a"]}), tmp_path / "t.parquet")
    (tmp_path / "m.json").write_text(json.dumps([{"messages": []}]))
    for kind, path in (("llava", "q.jsonl"), ("rows", "t.parquet")):
        given = Questions.model_validate({"kind": kind, "path": path, "images": "here", "splits": SPLITS})
        (tmp_path / "here").mkdir(exist_ok=True)
        with pytest.raises(UnusableData, match="kind: sources"):
            read(given, tmp_path)
    given = Questions.model_validate({"kind": "llava", "path": "m.json", "images": "here", "splits": SPLITS})
    assert "kind: sources" in read(given, tmp_path)[1][0].reason


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({"path": "a", "hub": "b"}, "has both or none of path and hub"),
        ({"hub": "b"}, "hub and revision belong together"),
        ({"path": "a", "columns": {"frage": "x"}}, "columns"),
        ({"path": "a", "form": "quiz"}, "form"),
    ],
)
def test_a_source_with_a_contradiction_is_named(source: dict[str, Any], line: str, root: Path) -> None:
    given = overlay(path="a", images="a", sources=[source])
    with pytest.raises(ParamsError, match=line):
        validate_params(merge_params(read_yaml(root / "params.yaml"), given))


@pytest.mark.slow
def test_the_command_reads_a_folder_of_shards_and_names_its_rejects(
    make_project: Callable[..., Path], start: Callable[..., Any]
) -> None:
    project = make_project(overlay(path="mine", images="mine", sources=[{"path": "mine"}]))
    (project / "mine").mkdir()
    for name, first in (("train", 0), ("test", ROWS)):
        rows = [FORMS["vqa"](first + n, {"bytes": draw(first + n), "path": None}) for n in range(ROWS)]
        pq.write_table(pa.Table.from_pylist(rows), project / f"mine/{name}.parquet")
    (project / "mine/broken.jsonl").write_bytes(vqa_lines(90, 1) + b"{\n")
    running = start(project, "flows.run", "questions")
    said = "".join(running.communicate(timeout=100))
    assert running.returncode == 0, said
    assert "source 0: mine: form: vqa" in said
    (reject,) = map(json.loads, (project / "reports/questions/rejects.jsonl").read_text().splitlines())
    assert (reject["file"], reject["row"]) == ("mine/broken.jsonl", 1)


def test_the_example_of_the_page_is_read(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (root / "docs/data.md").read_text()
    whole, part, *_ = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    folder = tmp_path / "datasets/vqa"
    (folder / "photos").mkdir(parents=True)
    for number in range(ROWS):
        (folder / f"photos/{number}.png").write_bytes(draw(number))
    rows = [
        {"question": ask(n), "choices": ["x", "y"], "answer": n % 2, "image_path": f"photos/{n}.png"} for n in range(3)
    ]
    (folder / "train.jsonl").write_bytes(dump_lines(rows))
    test = [{"frage": ask(n), "meta": {"truth": n}, "language": ["en", "de"][n % 2], "image": None} for n in range(4)]
    pq.write_table(pa.Table.from_pylist([FORMS["vqa"](3, {"bytes": draw(3), "path": None})]), folder / "test.parquet")
    given = yaml.safe_load(whole)
    reports = run_stage(tmp_path, root, merge_params(given, {"questions": {"splits": SPLITS}}))
    assert (reports / "rejects.jsonl").read_text() == ""
    said = capsys.readouterr().err
    assert "source 0: datasets/vqa/train.jsonl: form: choices" in said
    assert "train.jsonl: answer: column answer (options from 0), such as " in said
    assert "train.jsonl: images: column image_path, such as photos/0.png" in said
    (folder / "train.jsonl").write_bytes(dump_lines(test))
    (source,) = yaml.safe_load(part)["sources"]
    assert [row["answer"] for row in read(block(**source), tmp_path)[0]] == ["0", "2"]
