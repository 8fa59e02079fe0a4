"""Out and in again: the layouts of VLMEvalKit and lmms-eval, records on disk, the `ril` commands, overlap with training
data.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from stages.benchmarks.contamination import find_overlap, hash_training_images
from stages.benchmarks.exchange import contradicts_gold, export_predictions, import_predictions
from stages.benchmarks.paper import list_paper_scores
from stages.benchmarks.predictions import BenchmarkRecord, read_benchmark_record, write_benchmark_record
from stages.benchmarks.registry import COLUMNS, find_benchmark, load_registry
from stages.benchmarks.sample import BenchmarkError, Sample
from stages.benchmarks.scores import BenchmarkReply
from stages.benchmarks.sources import load_benchmark
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row
from stages.job.files import write_shards
from tests.stages.benchmarks import fixtures

ODD = ("None", "007", "1.50", 'tab\there, "quotes"\nand lines', "nan", " A ", "https://x.org/" + "y" * 5000, "=1+1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    fixtures.write_all(tmp_path / "data", "tsv")
    return tmp_path / "data"


def record_of(data: Path, name: str, shift: int = 0) -> BenchmarkRecord:
    samples = load_benchmark(load_registry()[name], data).samples
    replies = {
        s.index: BenchmarkReply(s.index, ODD[(n + shift) % len(ODD)], completion_tokens=n)
        for n, s in enumerate(samples)
    }
    return BenchmarkRecord(name, {"source": "x", "model": "m", "judge": None}, samples, replies, {})


@pytest.mark.parametrize("layout", ["vlmeval", "lmms"])
def test_texts_survive_both_layouts(tmp_path: Path, data: Path, layout: str) -> None:
    names = ("mmstar", "chartqa", "mmvet", "mmbench_en", "mathvista")
    for name, shift in ((name, shift) for name in names for shift in range(0, len(ODD), 3)):
        record = record_of(data, name, shift)
        file = export_predictions(record, layout, tmp_path / layout, "m")  # type: ignore[arg-type]
        back = import_predictions(file, record.samples, name)
        assert {index: reply.text for index, reply in back.replies.items()} == {
            i: r.text for i, r in record.replies.items()
        }


def test_the_layouts_are_those_of_the_harnesses(tmp_path: Path, data: Path) -> None:
    record = record_of(data, "mmstar")
    file = export_predictions(record, "vlmeval", tmp_path, "m")
    assert file.name == "m_MMStar.tsv"
    head = file.read_text().split("\n")[0].split("\t")
    assert head == ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "prediction"]
    line = json.loads(export_predictions(record, "lmms", tmp_path, "m").read_text().split("\n")[0])
    assert line == {"doc_id": 0, "index": "0", "target": "A", "filtered_resps": ["None"], "score": 0.0}


def test_files_of_other_rows_are_refused(tmp_path: Path, data: Path) -> None:
    samples = load_benchmark(load_registry()["mmstar"], data).samples
    file = tmp_path / "x.tsv"
    file.write_text("index\tprediction\n99\tA\n")
    with pytest.raises(BenchmarkError, match=r"x.tsv, row 1: '99' is not a row of mmstar"):
        import_predictions(file, samples, "mmstar")
    file.write_text("index\tprediction\n0\tA\n0\tB\n")
    with pytest.raises(BenchmarkError, match=r"x.tsv, row 2: a second answer to '0'"):
        import_predictions(file, samples, "mmstar")
    file.write_text("index\tanswer\n0\tA\n")
    with pytest.raises(BenchmarkError, match="no column 'prediction'"):
        import_predictions(file, samples, "mmstar")
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"doc_id": 7, "resps": [["A"]]}\n')
    with pytest.raises(BenchmarkError, match=r"x.jsonl, line 1: doc_id 7 is no place among 4 rows"):
        import_predictions(lines, samples, "mmstar")
    lines.write_text('{"doc_id": 0}\n')
    with pytest.raises(BenchmarkError, match=r"line 1: no text in filtered_resps or resps"):
        import_predictions(lines, samples, "mmstar")


@pytest.mark.parametrize(
    ("target", "options", "gold", "contradicts"),
    [
        ("D", "cat dog bird fish", "A", True),
        ("A", "cat dog bird fish", "A", False),
        ("(a).", "cat dog bird fish", "A", False),
        (0, "cat dog bird fish", "A", False),
        (3, "cat dog bird fish", "A", True),
        (" Cat ", "cat dog bird fish", "A", False),
        ("dog", "cat dog bird fish", "A", True),
        (["B", "A"], "cat dog bird fish", "A", False),
        ("no option", "cat dog bird fish", "A", False),
        (None, "cat dog bird fish", "A", False),
        ("14.0", "", "14", False),
        ("15", "", "14", True),
        ("Blue ", "", "blue", False),
        ("red", "", "blue", True),
        ("", "", "blue", False),
        ({"a": 1}, "", "blue", False),
    ],
)
def test_a_target_that_contradicts_the_row(target: object, options: str, gold: str, contradicts: bool) -> None:
    sample = Sample("0", "q", gold, dict(zip("ABCD", options.split(), strict=False)))
    assert contradicts_gold(target, sample) is contradicts


def test_predictions_of_another_order_are_refused(tmp_path: Path, data: Path) -> None:
    """doc_id counts rows of another order, and its target says so (lmms-eval); so does VLMEvalKit's answer."""
    samples = load_benchmark(find_benchmark("mmstar"), data).samples
    lines = tmp_path / "x.jsonl"
    rows = [{"doc_id": place, "target": one.gold, "resps": [["A"]]} for place, one in enumerate(reversed(samples))]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BenchmarkError, match=r"x.jsonl, line 1: the target is 'D', but row 0 of mmstar has the answer"):
        import_predictions(lines, samples, "mmstar")
    table = tmp_path / "x.tsv"
    table.write_text("index\tanswer\tprediction\n0\tC\tA\n")
    with pytest.raises(BenchmarkError, match=r"x.tsv, row 1: the target is 'C', but row 0"):
        import_predictions(table, samples, "mmstar")
    table.write_text(f"index\tanswer\tprediction\n0\t{samples[0].gold}\tA\n")
    assert import_predictions(table, samples, "mmstar").replies["0"].text == "A"


@pytest.mark.parametrize(
    "keys",
    [
        lambda place: {"doc_id": str(place)},
        lambda place: {"doc_id": float(place)},
        lambda place: {"index": f"{place}.0"},
        lambda place: {"index": float(place)},
        lambda place: {"doc_id": place, "index": str(place)},
    ],
)
@pytest.mark.parametrize("layout", ["\ufeff{}", "{}\n", "\r\n{}\n\n  \n"])
def test_lines_as_others_write_them_are_read(
    tmp_path: Path, data: Path, keys: Callable[[int], dict[str, Any]], layout: str
) -> None:
    """A byte order mark, blank lines, numbers as text, and numbers that pandas has made floats."""
    samples = load_benchmark(find_benchmark("mmstar"), data).samples
    rows = [json.dumps({**keys(place), "target": one.gold, "resps": [["A"]]}) for place, one in enumerate(samples)]
    lines = tmp_path / "x.jsonl"
    lines.write_text(layout.format("\n".join(rows)), encoding="utf-8", newline="")
    assert list(import_predictions(lines, samples, "mmstar").replies) == [one.index for one in samples]
    table = tmp_path / "x.tsv"
    table.write_text("\ufeffindex\tprediction\r\n0.0\tB\r\n", encoding="utf-8", newline="")
    assert import_predictions(table, samples, "mmstar").replies["0"].text == "B"


@pytest.mark.parametrize("place", ["x", True, -1, 10**12, "1.5", None, "²"])
def test_a_row_number_that_is_none_is_named(tmp_path: Path, data: Path, place: object) -> None:
    samples = load_benchmark(find_benchmark("mmstar"), data).samples
    lines = tmp_path / "x.jsonl"
    lines.write_text(json.dumps({"doc_id": place, "resps": "A"}) + "\n")
    with pytest.raises(BenchmarkError, match=r"line 1: doc_id .* is no place among"):
        import_predictions(lines, samples, "mmstar")


def test_a_record_with_a_broken_line_names_it(tmp_path: Path, data: Path) -> None:
    write_benchmark_record(tmp_path / "r", record_of(data, "mmstar"))
    assert read_benchmark_record(tmp_path / "r").replies == record_of(data, "mmstar").replies
    file = tmp_path / "r" / "predictions.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-20])
    with pytest.raises(BenchmarkError, match=r"predictions.jsonl, line 4: it is not JSON"):
        read_benchmark_record(tmp_path / "r")
    file.write_text(whole + whole.split("\n")[0] + "\n")
    with pytest.raises(BenchmarkError, match=r"predictions.jsonl, line 5: a second row '0'"):
        read_benchmark_record(tmp_path / "r")


def ril(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output if result.exception is None else f"{result.output}{result.exception}"


def test_the_commands_from_import_to_comparison(tmp_path: Path, data: Path) -> None:
    for model, replies in (("a", "ABCD"), ("b", "AACC")):
        file = tmp_path / f"{model}_MMStar.tsv"
        file.write_text("index\tprediction\n" + "".join(f"{n}\t{letter}\n" for n, letter in enumerate(replies)))
        code, said = ril("import", file, "mmstar", data, tmp_path / model)
        assert (code, "4 replies to 4 rows" in said) == (0, True)
    code, said = ril("score", tmp_path / "a", "--profile", "ours", "--profile", "lmms@0.7.3", "--by")
    assert code == 0
    assert "100.0 ± 0.0" in said
    assert "ours: average over 1 of 14 columns 100.00; lacking: AI2D, ChartQA" in said
    assert "category: math" in said
    code, said = ril("compare", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "+50.0" in said
    code, said = ril("export", tmp_path / "a", tmp_path / "out", "--layout", "lmms", "--model", "a")
    assert code == 0
    assert (tmp_path / "out" / "a_samples_mmstar.jsonl").is_file()
    assert "no profile 'theirs'" in ril("score", tmp_path / "a", "--profile", "theirs")[1]
    assert "no manifest.json" in ril("score", data)[1]
    (tmp_path / "a" / "mmstar" / "samples.jsonl").write_text("{")
    assert "have the same name; give the folder of one model" in ril("score", tmp_path)[1]
    code, said = ril("score", tmp_path / "a")
    assert code == 2
    assert "samples.jsonl, line 1: it is not JSON" in said


def test_images_of_a_benchmark_in_training_data_are_found(tmp_path: Path, data: Path) -> None:
    messages = [{"role": "user", "content": "<image>?"}]
    rows = [
        make_canonical_row(f"q{n}", [fixtures.picture(name)], messages, "1", "s", "k")
        for n, name in enumerate(("s1", "other"))
    ]
    write_shards(tmp_path / "questions" / "warm_start", rows, QUESTION_SCHEMA)
    samples = load_benchmark(load_registry()["mmstar"], data).samples
    found = find_overlap("mmstar", samples, "warm_start", hash_training_images(tmp_path / "questions" / "warm_start"))
    assert (found.samples, found.shared, found.examples) == (4, 1, ("1 = q0",))
    (data / "AI2D_TEST_NO_MASK.tsv").unlink()
    code, said = ril("contamination", data, "--questions", tmp_path / "questions")
    assert code == 1
    assert "1 = q0" in said
    assert "not checked, not in" in said
    assert "ai2d_no_mask" in said
    (data / "BLINK.tsv").write_text("index\tquestion\n")
    code, said = ril("contamination", data, "--questions", tmp_path / "questions")
    assert "not checked: blink: " in said
    assert "tiny" not in said  # its pictures are in no file
    code, said = ril("contamination", tmp_path / "questions", "--questions", tmp_path / "questions")
    assert code != 0
    assert "holds no benchmark that can be read, so nothing was checked" in said
    code, said = ril("contamination", data, "--questions", tmp_path / "nowhere")
    assert code != 0
    assert "no split with parquet files; run: dvc repro questions" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("index\tprediction\n0\tA\n1\n", "x.tsv, row 2: 1 cells under 2 columns"),
        ("index\tprediction\n0\tA\tB\n", "x.tsv, row 1: 3 cells under 2 columns"),
        ("index\tprediction\n0\tA\n\n1\t\xe9\n", "x.tsv, row 2: is not UTF-8"),
        ("", "no column 'index', 'prediction' among"),
    ],
)
def test_broken_predictions_are_named(tmp_path: Path, data: Path, text: str, said: str) -> None:
    (tmp_path / "x.tsv").write_bytes(text.encode("latin-1"))
    with pytest.raises(BenchmarkError, match=said):
        import_predictions(tmp_path / "x.tsv", load_benchmark(load_registry()["mmstar"], data).samples, "mmstar")
    code, told = ril("import", tmp_path / "nowhere.tsv", "mmstar", data, tmp_path / "out")
    assert code != 0
    assert "nowhere.tsv: no such file" in told


def test_what_keeps_a_score_from_being_whole_stands_beside_it(tmp_path: Path, data: Path) -> None:
    record = record_of(data, "mmstar")
    replies = {index: replace(reply, text="A") for index, reply in record.replies.items() if index != "0"}
    write_benchmark_record(tmp_path / "a", replace(record, replies=replies))
    code, said = ril("score", tmp_path / "a")
    assert code == 1
    assert "(incomplete: 25.0 % no reply)" in said


def test_quoted_rows_have_the_means_of_the_paper() -> None:
    rows = list_paper_scores()
    assert len(rows) == 25
    assert all(list(row) == list(COLUMNS) for row in rows.values())
    means = {name: round(sum(row.values()) / 14, 2) for name, row in rows.items()}
    assert means["Qwen2.5-VL-7B"] == 69.35
    assert means["Qwen2.5-VL-7B + RIL (both teachers)"] == 76.22
    assert means["InternVL3-1B + Dr.GRPO"] == 57.23
