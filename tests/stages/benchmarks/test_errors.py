"""Broken benchmark files: a message with file, row, column and remedy; the other benchmarks go on; nothing is
overwritten.
"""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages.benchmarks import tables
from stages.benchmarks.answering import plan_benchmarks
from stages.benchmarks.registry import load_registry
from stages.benchmarks.sample import BenchmarkError
from stages.benchmarks.sources import check_pictures, load_benchmark
from stages.config.evaluate import Evaluate
from tests.stages.benchmarks import fixtures

ROWS = fixtures.tsv()["RealWorldQA"]


def write(folder: Path, rows: list[dict[str, Any]], **how: Any) -> Path:
    path = folder / "RealWorldQA.tsv"
    fixtures.write_tsv(path, rows, **how)
    return path


def broken(folder: Path) -> str:
    """What is said about RealWorldQA."""
    with pytest.raises(BenchmarkError) as error:
        check_pictures(load_benchmark(load_registry()["realworldqa"], folder).samples)
    return str(error.value)


def test_an_unknown_md5_is_named_and_the_file_stays(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    before = path.read_bytes()
    loaded = load_benchmark(load_registry()["realworldqa"], tmp_path)
    (note,) = [note for note in loaded.notes if "md5" in note]
    assert "known is 4de008f55dc4fd008ca9e15321dc44b7" in note
    assert "unknown" in loaded.source
    with pytest.raises(
        BenchmarkError, match=r"RealWorldQA.tsv: md5 is [0-9a-f]{32}, known is 4de.*evaluate.strict_md5"
    ):
        load_benchmark(load_registry()["realworldqa"], tmp_path, strict_md5=True)
    assert path.read_bytes() == before


def test_a_generation_of_a_file_is_known_by_its_md5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixtures.write_tsv(tmp_path / "BLINK.tsv", fixtures.tsv()["BLINK"])
    monkeypatch.setattr("stages.benchmarks.sources.hash_md5", lambda path: "3b6649b6a662184ea046908e5506260e")
    loaded = load_benchmark(load_registry()["blink"], tmp_path, strict_md5=True)
    assert "labels v2024" in loaded.source


def test_a_missing_column(tmp_path: Path) -> None:
    write(tmp_path, [{key: value for key, value in row.items() if key != "answer"} for row in ROWS])
    assert "RealWorldQA.tsv: no column 'answer' among index, question, A, B, C, D" in broken(tmp_path)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("!!! no base64, and longer than the sixty-four characters of an index !!!", "the image is no base64"),
        (fixtures.encoded("x")[:80] + "A" * 20, "not a readable image"),
        ("R0lGODlh" + "A" * 80, "not a readable image"),
        ("['unfinished" + "A" * 80, "starts like a list of images but is not one"),
        ("7", "'7' is neither an image nor the index of a row"),
    ],
)
def test_an_unreadable_image(tmp_path: Path, image: str, said: str) -> None:
    write(tmp_path, [*ROWS, {**ROWS[0], "index": 1, "image": image}])
    message = broken(tmp_path)
    assert said in message
    assert "RealWorldQA.tsv, row 2, column 'image'" in message


def test_a_duplicate_index(tmp_path: Path) -> None:
    write(tmp_path, [ROWS[0], {**ROWS[0], "index": 5}, {**ROWS[0], "question": "Another?"}])
    assert broken(tmp_path) == "RealWorldQA.tsv, row 3, column 'index': '0' is also in RealWorldQA.tsv, row 1; drop one"


def test_an_empty_answer_names_its_cell(tmp_path: Path) -> None:
    write(tmp_path, [ROWS[0], {**ROWS[0], "index": 1, "answer": ""}])
    assert "row 2, column 'answer': is empty" in broken(tmp_path)


def test_tabs_newlines_quotes_bom_and_crlf_stay_in_their_cells(tmp_path: Path) -> None:
    question = 'Tab\there,\na "quoted" line\r\nand one more'
    path = write(tmp_path, [{**ROWS[0], "question": question, "A": "NA", "B": "None"}], end="\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (sample,) = load_benchmark(load_registry()["realworldqa"], tmp_path).samples
    assert sample.question == question
    assert dict(sample.options) == {"A": "NA", "B": "None", "C": "ahead"}
    check_pictures([sample])


def test_unquoted_tabs_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    path.write_text(path.read_text() + "1\ta question with\ta tab\tA\n")
    assert "RealWorldQA.tsv, row 2: 4 cells under 9 columns; quote tabs and newlines" in broken(tmp_path)


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    path.write_text(path.read_text() + '1\t"a question without an end\tA\n')
    message = broken(tmp_path)
    assert "RealWorldQA.tsv, row 2, column 2:" in message
    assert "quotes must be closed" in message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    path.write_bytes(path.read_bytes() + b"1\tcaf\xe9\n")
    assert "row 2: is not UTF-8 (byte 5 is 0xe9)" in broken(tmp_path)


@pytest.mark.parametrize("megabytes", [300 if os.environ.get("RIL_LARGE_CELL") else 3])
def test_a_cell_above_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, megabytes: int) -> None:
    """RIL_LARGE_CELL=1 takes a cell of 300 MB and the real limit; without it both are a hundredth."""
    if megabytes == 3:
        monkeypatch.setattr(tables, "CELL_LIMIT", 2 << 20)
    write(tmp_path, [ROWS[0], {**ROWS[0], "index": 1, "image": "A" * (megabytes << 20)}])
    message = broken(tmp_path)
    assert "RealWorldQA.tsv, row 2, column 9: field larger than field limit" in message
    assert f"at most {tables.CELL_LIMIT >> 20} MiB" in message


def test_an_incomplete_question_of_mmbench(tmp_path: Path) -> None:
    fixtures.write_tsv(tmp_path / "MMBench_DEV_EN.tsv", fixtures.mmbench("en")[:3])
    with pytest.raises(BenchmarkError, match="question 5 has 3 rows and 4 options; every rotation is required"):
        load_benchmark(load_registry()["mmbench_en"], tmp_path)


def test_a_parquet_file_that_is_cut(tmp_path: Path) -> None:
    fixtures.write_all(tmp_path, "hub")
    shard = next((tmp_path / "blink").rglob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(BenchmarkError, match=r"val-00000-of-00001.parquet: can't be read .*fetch it again"):
        load_benchmark(load_registry()["blink"], tmp_path)


def test_a_parquet_file_without_image_bytes(tmp_path: Path) -> None:
    rows = [{**row, "image": {"bytes": None, "path": "images/1.png"}} for row in fixtures.hub()["ai2d"][1]]
    (tmp_path / "ai2d").mkdir()
    pq.write_table(fixtures.arrow_table(rows), tmp_path / "ai2d" / "test-00000-of-00001.parquet")
    with pytest.raises(BenchmarkError, match=r"row 1, column 'image': holds a path and no bytes"):
        check_pictures(load_benchmark(load_registry()["ai2d"], tmp_path).samples)


def test_what_is_not_there_is_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        BenchmarkError, match=r"MMStar: nothing in .*MMStar.tsv from https://.*Lin-Chen/MMStar as folder mmstar"
    ):
        load_benchmark(load_registry()["mmstar"], tmp_path)


def test_the_other_benchmarks_go_on(tmp_path: Path) -> None:
    fixtures.write_all(tmp_path, "tsv")
    write(tmp_path, [{**ROWS[0], "image": "x" * 100}])
    (tmp_path / "BLINK.tsv").write_text("index\tquestion\n")
    (tmp_path / "AI2D_TEST_NO_MASK.tsv").unlink()
    names = ("ai2d", "realworldqa", "blink", "mmstar", "ai2d_no_mask")
    said: list[str] = []
    plan = plan_benchmarks(Evaluate(benchmarks=names), tmp_path, tmp_path, said.append)
    assert list(plan.loaded) == ["ai2d", "mmstar"]
    assert set(plan.errors) == {"realworldqa", "blink", "ai2d_no_mask"}
    assert all(any(message in line for line in said) for message in plan.errors.values())
    assert len(plan.all_prompts) == 6
