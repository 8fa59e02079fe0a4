"""`ril data` as a person types it: what is counted, what is refused with one line, and the page."""

import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from flows.cli import data as command
from flows.cli.data_report import format_check
from stages.config.yaml import merge_params, read_yaml
from stages.vlm.checkpoint import Checkpoint

Ril = Callable[..., tuple[int, str, str]]


def picture(shade: int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (84, 56), (shade % 256, shade // 256, 0)).save(buffer, form)
    return buffer.getvalue()


def write_rows(folder: Path, count: int, **changes: Mapping[str, Any]) -> Path:
    """LLaVA rows with images beside them; `changes` are laid over a row, such as r3={"id": "q0"}."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        (folder / "images" / f"{number}.png").write_bytes(picture(number))
        turns = [
            {"from": "human", "value": f"<image>\nWhat is {number}?"},
            {"from": "gpt", "value": f"It is {number}."},
        ]
        row = {"id": f"q{number}", "image": f"{number}.png", "conversations": turns}
        rows.append(row | dict(changes.get(f"r{number}", {})))
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def write_table(file: Path, count: int) -> None:
    """VQA columns with images inside."""
    rows = range(count)
    columns = {
        "image": [{"bytes": picture(number), "path": None} for number in rows],
        "question": [f"What is {number}?" for number in rows],
        "answer": [str(number % 3) for number in rows],
    }
    pq.write_table(pa.table(columns), file)


@pytest.fixture
def with_params(root: Path, tmp_path: Path) -> Callable[..., None]:
    """Writes params.yaml into the temporary folder, with `overlay` laid over that of the project."""

    def write(**overlay: Any) -> None:
        small = {"splits": {"warm_start": 6, "imitation": 2, "validation": 2, "test": 2}}
        values = merge_params(read_yaml(root / "params.yaml"), {"questions": small, **overlay})
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))

    return write


@pytest.fixture
def student(tiny: Callable[[str], Checkpoint], tmp_path: Path) -> Path:
    """A tiny student, where stage `model` writes it."""
    return shutil.copytree(tiny("qwen2_5_vl").folder, tmp_path / "data" / "model" / "student")


# --- check ----------------------------------------------------------------------------------------------------------


def test_counts_repeats_and_reasons_are_printed_and_written(ril: Ril, tmp_path: Path) -> None:
    write_rows(
        tmp_path,
        8,
        r3={"id": "q0"},
        r5={"image": "4.png"},
        r6={"image": "gone.png"},
        r7={"conversations": [{"from": "human", "value": "<image>"}]},
    )
    code, out, err = ril("data", "check", "rows.json", "--json", "found.json")
    assert code == 1
    assert err.splitlines()[-1].startswith(
        "error: 2 of 8 rows are unusable, more than questions.max_reject_share (0.01)"
    )
    for words in (
        "rows.json: 8 rows read, all",
        "6 usable, 2 unusable (25.0 %)",
        "messages  column conversations",
        "Length in characters, not in tokens: there is no params.yaml here that names a model",
        "Images: 6 (6 rows with 1)",
        "formats: PNG 6",
        "Latin 100.0 %",
        "1 rows have the id of an earlier row",
        "numbers them (such as rows.json, row 3, as rows.json, row 0)",
        "1 images are in an earlier row too",
        "rows.json, row 6, id q6, field image = gone.png",
    ):
        assert words in out, words
    found = json.loads((tmp_path / "found.json").read_text())
    assert format_check(found) + "\n" == out
    assert found["rejects"]["rows"] == 2
    assert found["images"]["width"]["max"] == 84


def test_a_sample_is_drawn_by_seed_where_the_number_of_rows_is_known(ril: Ril, tmp_path: Path) -> None:
    write_table(tmp_path / "rows.parquet", 30)
    write_rows(tmp_path, 5)
    code, out, _ = ril("data", "check", "rows.parquet", "--sample", "4")
    assert code == 0
    assert "rows.parquet: 4 of 30 rows read, drawn by seed (--all reads all)" in out
    assert ril("data", "check", "rows.parquet", "--sample", "4")[1] == out
    assert "drawn by seed from the first 20 (" in ril("data", "check", "rows.parquet", "--sample", "2")[1]
    assert "30 rows read, all" in ril("data", "check", "rows.parquet", "--sample", "4", "--all")[1]
    assert "'0' 33.3 %" in ril("data", "check", "rows.parquet")[1]
    said = ril("data", "check", "rows.json", "--sample", "3")[1]
    assert "the first 3 rows read; the files do not say how many there are" in said


def test_images_in_another_folder_are_named(ril: Ril, tmp_path: Path) -> None:
    write_rows(tmp_path / "a", 3)
    (tmp_path / "a" / "images").rename(tmp_path / "pictures")
    assert ril("data", "check", "a/rows.json")[0] == 1
    assert ril("data", "check", "a/rows.json", "--images", "pictures")[0] == 0
    code, _, err = ril("data", "check", "--images", "pictures")
    assert (code, err.count("\n")) == (2, 1)


def test_columns_without_names_are_given_by_place(ril: Ril, tmp_path: Path) -> None:
    write_rows(tmp_path, 3)
    rows = [[f"What is {number}?", str(number), f"images/{number}.png"] for number in range(3)]
    (tmp_path / "lists.json").write_text(json.dumps(rows))
    assert ril("data", "check", "lists.json")[0] != 0
    given = ("--column", "question=0", "--column", "answer=1")
    code, out, err = ril("data", "check", "lists.json", *given)
    assert (code, "3 usable, 0 unusable" in out) == (0, True), err
    assert "question  column 0" in out
    for wrong in ("quest=0", "question"):
        code, _, err = ril("data", "check", "lists.json", "--column", wrong)
        assert (code, err.count("\n")) == (2, 1)
        assert f"--column {wrong}" in err
        assert "write FIELD=COLUMN; fields: id, messages, question" in err
    assert ril("data", "check", "--column", "question=0")[0] == 2


def test_the_first_rows_are_of_all_sources(tmp_path: Path) -> None:
    from flows.cli.data_source import _open_sources
    from stages.config.questions import Questions

    (tmp_path / "mine").mkdir()
    sources = []
    for name, count in (("long", 9), ("short", 2)):
        lines = [json.dumps({"question": f"{name} {number}?", "answer": "a"}) for number in range(count)]
        (tmp_path / "mine" / f"{name}.jsonl").write_text("\n".join(lines))
        sources.append({"path": f"mine/{name}.jsonl"})
    splits = dict.fromkeys(("warm_start", "imitation", "validation", "test"), 1)
    values = {"kind": "sources", "path": "mine", "images": "mine", "sources": sources, "splits": splits}
    data = _open_sources("both", Questions.model_validate(values), tmp_path)
    assert [row.source for row in data.rows()] == [0, 1, 0, 1, *[0] * 7]


REFUSED = {
    "nothing there": (("nowhere.json",), 2, "no such file or folder; the id of a data set on the hub looks like"),
    "hub, downloads off": (("someone/data",), 2, "downloads are off; set RIL_ALLOW_DOWNLOADS=1"),
    "broken archive": (("broken.tar",), 2, "broken.tar"),
    "broken parquet": (("broken.parquet",), 2, "not readable as parquet"),
    "no params": ((), 2, "no params.yaml here: name the data"),
    "params not there": (("--params", "gone.yaml"), 2, "--params gone.yaml: no such file"),
    "empty": (("empty.json",), 2, "empty.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_line(ril: Ril, tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.tar").write_bytes(b"no archive" * 100)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" + b"x" * 100)
    (tmp_path / "empty.json").write_text("[]")
    arguments, expected, words = REFUSED[name]
    code, _, err = ril("data", "check", *arguments)
    assert code == expected
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert "Traceback" not in err


def test_what_breaks_on_the_way_is_told_after_what_was_read(ril: Ril, tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", 12)
    (tmp_path / "rows").mkdir()
    (tmp_path / "a.parquet").rename(tmp_path / "rows" / "a.parquet")
    whole = (tmp_path / "rows" / "a.parquet").read_bytes()
    start = whole.index(b"IDAT")
    (tmp_path / "rows" / "b.parquet").write_bytes(whole[:start] + b"\xff" * 200 + whole[start + 200 :])
    code, out, err = ril("data", "check", "rows")
    assert code == 1
    assert "12 usable" in out
    assert "b.parquet" in err + out


def test_lengths_are_tokens_where_the_student_is_here(
    ril: Ril, tmp_path: Path, with_params: Callable[..., None], student: Path
) -> None:
    long = [{"from": "human", "value": "<image>\n" + "What is it? " * 100}, {"from": "gpt", "value": "5"}]
    write_rows(tmp_path, 4, r2={"conversations": long})
    with_params(questions={"kind": "llava", "path": "rows.json", "images": "images"})
    code, out, _ = ril("data", "check", "--json", "found.json", "--no-benchmarks")
    assert code == 0
    assert "Length in tokens of data/model/student, whose context has 256" in out
    assert "1 rows are longer than the context, with their answer" in out
    found = json.loads((tmp_path / "found.json").read_text())
    from stages.vlm.checkpoint import open_checkpoint
    from stages.vlm.reader import load_reader

    reader = load_reader(open_checkpoint(student))
    turn = {"role": "user", "content": "<image>\nWhat is 0?"}
    wanted = len(reader.make_prompt([turn], [(tmp_path / "images" / "0.png").read_bytes()]).ids)
    assert found["lengths"]["prompt"]["min"] == wanted
    assert found["images"]["tokens"]["median"] == reader.make_pixels([picture(0)]).tokens[0]


def test_models_that_show_nothing_are_named(ril: Ril, tmp_path: Path, with_params: Callable[..., None]) -> None:
    write_rows(tmp_path, 2)
    with_params()
    assert "make it with: dvc repro model@student" in ril("data", "check", "rows.json")[1]
    code, _, err = ril("data", "check", "rows.json", "--model", "nobody")
    assert (code, "--model nobody: no such entry of models; entries: " in err) == (2, True)
    code, _, err = ril("data", "show", "rows.json")
    assert code == 2
    assert "data/model/student is not there yet; make it with: dvc repro model@student" in err


def test_images_of_a_benchmark_are_found(ril: Ril, tmp_path: Path, with_params: Callable[..., None]) -> None:
    import base64

    write_rows(tmp_path, 3)
    with_params(evaluate={"folder": "benchmarks", "benchmarks": []})
    (tmp_path / "benchmarks").mkdir()
    shown = base64.b64encode(picture(1)).decode()
    head = "index\timage\tquestion\tA\tB\tanswer\tcategory\tl2_category\n"
    (tmp_path / "benchmarks" / "MMStar.tsv").write_text(f"{head}0\t{shown}\tWhat?\ta\tb\tA\tx\ty\n")
    code, out, err = ril("data", "check", "rows.json")
    assert code == 0, err
    assert "mmstar: 1 of 1 rows, such as 0 = rows.json, row 1" in out
    assert "mmstar" not in ril("data", "check", "rows.json", "--no-benchmarks")[1]


# --- show -----------------------------------------------------------------------------------------------------------


def test_the_page_shows_rows_that_are_drawn_by_seed(
    ril: Ril, tmp_path: Path, with_params: Callable[..., None], student: Path
) -> None:
    write_rows(tmp_path, 12, r6={"image": "gone.png"})
    with_params()
    code, out, _ = ril("data", "show", "rows.json", "--rows", "10", "--out", "seen.html")
    assert (code, out) == (0, "10 questions are in seen.html; open it in a browser\n")
    page = (tmp_path / "seen.html").read_text()
    assert len(re.findall(r"<div class=\"card seen\">", page)) == 10
    assert page.count("as the model sees it") == 10
    assert "10 of 12 questions of rows.json" in page
    assert "gone.png" in page
    ril("data", "show", "rows.json", "--rows", "10", "--out", "again.html")
    assert (tmp_path / "again.html").read_text() == page
    with_params(seed=1)
    ril("data", "show", "rows.json", "--rows", "3", "--out", "third.html")
    assert (tmp_path / "third.html").read_text() != page


def test_the_tiny_world_is_shown_and_checked_without_a_path(
    ril: Ril, tmp_path: Path, with_params: Callable[..., None], student: Path
) -> None:
    with_params()
    assert ril("data", "show", "--rows", "3")[0] == 0
    assert "3 of 12 questions of the tiny world" in (tmp_path / "data.html").read_text()
    code, out, _ = ril("data", "check", "--no-benchmarks")
    assert code == 0
    assert "12 rows read, all" in out


def test_a_page_needs_a_usable_row(ril: Ril, tmp_path: Path, with_params: Callable[..., None], student: Path) -> None:
    write_rows(tmp_path, 1, r0={"image": "gone.png"})
    with_params()
    code, _, err = ril("data", "show", "rows.json")
    assert (code, "none of 1 rows of rows.json is usable; see why with: ril data check" in err) == (2, True)


def test_only_few_of_many_rows_are_kept_to_draw_from(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cli.data_source import Data
    from stages.config.questions import Questions
    from stages.corpora.source import SourceRow

    rows = [SourceRow(str(number), dict) for number in range(50)]
    data = Data("x", Questions.model_construct(), lambda: iter(rows))
    drawn, total = command.draw_shown_rows(data, 8, 0)
    assert (len(drawn), total) == (11, 50)
    monkeypatch.setattr(command, "SAMPLE", 20)
    drawn, total = command.draw_shown_rows(data, 8, 0)
    assert total is None
    assert all(number < 20 for number, _ in drawn)


@pytest.mark.slow
def test_the_command_runs_as_a_program(make_project: Callable[..., Path], call: Callable[..., Any]) -> None:
    project = make_project()
    write_rows(project / "mine", 5)
    code, out, err = call(project, "flows.cli", "data", "check", "mine/rows.json")
    assert code == 0, err
    assert "mine/rows.json: 5 rows read, all" in out
    assert "reading mine/rows.json: 5" in err
    assert call(project, "flows.cli", "data", "check", "mine/gone.json")[0] == 2
