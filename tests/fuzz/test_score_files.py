"""`ril score` and `ril import` on broken files: an outcome for each benchmark, no traceback, no wait."""

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli.main import app
from stages.benchmarks.exchange import import_predictions
from stages.benchmarks.predictions import JUDGE, MANIFEST, PREDICTIONS, SAMPLES, BenchmarkRecord, write_benchmark_record
from stages.benchmarks.record_rows import LONGEST_LINE
from stages.benchmarks.registry import load_registry
from stages.benchmarks.sample import BenchmarkError, Sample
from stages.benchmarks.scores import BenchmarkReply, compute_benchmark_scores
from stages.benchmarks.sources import load_benchmark
from stages.benchmarks.verdicts import JudgeReply
from tests.fuzz.mutations import draw_inputs, dump_json, limit_time, mutate_bytes, mutate_json
from tests.stages.benchmarks import fixtures

NAMES = ("mathvista", "mmbench_en", "mmstar", "mmvet")
NUMBER = {"question_type": "free_form", "answer_type": "integer", "answer_option": ""}
FILES = (MANIFEST, SAMPLES, PREDICTIONS, JUDGE)
PROFILES = ("--profile", "ours", "--profile", "vlmeval@0.0.20")
SECONDS = 10.0  # for a folder of a few rows; other work on the machine takes most of it


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Benchmark files as published."""
    folder = tmp_path_factory.mktemp("tables")
    fixtures.write_all(folder, "tsv")
    return folder


@pytest.fixture(scope="module")
def whole(tables: Path) -> Path:
    """Records of four benchmarks: numbers, rotations, options, grades."""
    folder = tables.parent / "whole"
    for name in NAMES:
        samples = [Sample.from_row(one.to_row()) for one in load_benchmark(load_registry()[name], tables).samples]
        replies = {one.index: BenchmarkReply(one.index, f"The answer is {one.gold}.") for one in samples}
        said = {one.index: JudgeReply(one.index, "p", "1.0") for one in samples} if name == "mmvet" else {}
        manifest: dict[str, Any] = {
            "cot": "off",
            "judge": "judge" if said else None,
            "source": "x",
            "model": "m",
            "notes": [],
        }
        write_benchmark_record(folder / name, BenchmarkRecord(name, manifest, samples, replies, said))
    return folder


def score(folder: Path) -> Result:
    """What `ril score` says of a folder, within SECONDS."""
    with limit_time(SECONDS):
        return CliRunner().invoke(
            app, ["score", str(folder), "--profile", "ours", "--profile", "vlmeval@0.0.20", "--by"]
        )


def check_outcomes(result: Result, broken: str, seed: object = "") -> None:
    """Every benchmark has a row or an error in one line; only `broken` may have an error."""
    assert result.exception is None or isinstance(result.exception, SystemExit), (seed, result.exc_info)
    assert result.exit_code in (0, 1, 2), seed
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in errors] in ([], [broken]), (seed, errors)
    assert result.exit_code == 2 if errors else result.exit_code < 2, seed
    assert not any(re.match(r"error: \w+: [A-Z]\w+(Error|Exception): ", line) for line in errors), (seed, errors)
    assert all(len(line) < 1200 and line.isprintable() for line in errors), (seed, errors)
    for name in NAMES:
        scored = re.search(rf"^{re.escape(load_registry()[name].title)} +ours", result.output, re.MULTILINE)
        assert scored or (name == broken and errors), (seed, name)


def mutate_file(path: Path, rng: random.Random) -> None:
    """Changes a value in the JSON of one or more lines, doubles or drops lines, or changes bytes."""
    content = path.read_bytes()
    if rng.random() < 0.3 or not content:
        path.write_bytes(mutate_bytes(content, rng))
        return
    lines = [content] if path.name == MANIFEST else content.splitlines()
    place = rng.randrange(len(lines))
    action = rng.random()
    if action < 0.1:
        del lines[place]
    elif action < 0.2:
        lines.insert(rng.randrange(len(lines) + 1), lines[place])
    else:
        lines[place] = dump_json(mutate_json(json.loads(lines[place]), rng), rng)
    path.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))


def test_one_broken_file_leaves_the_other_benchmarks(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "ril")
    codes = set()
    for number, rng in enumerate(draw_inputs()):
        broken = rng.choice(NAMES)
        path = tmp_path / "ril" / broken / rng.choice(FILES)
        mutate_file(path, rng)
        result = score(tmp_path / "ril")
        check_outcomes(result, broken, number)
        codes.add(result.exit_code)
        shutil.copyfile(whole / broken / path.name, path)
    assert codes >= {0, 2}


SPECIAL = ("pipe", "folder", "loop", "dangling", "zero", "memory", "sparse", "hole", "line", "utf-16", "nul")


def make_special(path: Path, kind: str) -> None:
    """Puts something else in place of a file."""
    text = path.read_text(encoding="utf-8")
    if kind != "sparse":
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("loop", "dangling", "zero", "memory"):
        path.symlink_to({"loop": path.name, "zero": "/dev/zero", "memory": "/proc/self/mem"}.get(kind, "nowhere"))
    elif kind in ("sparse", "hole"):  # a terabyte that takes no room
        with path.open("ab") as file:
            file.truncate(1 << 40)
    elif kind == "utf-16":
        path.write_text(text or "{}", encoding="utf-16")
    else:
        path.write_bytes(b" " * (LONGEST_LINE + 10) if kind == "line" else b"\0" * 1000)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", SPECIAL)
def test_a_special_file_is_named(whole: Path, tmp_path: Path, kind: str, file: str) -> None:
    shutil.copytree(whole, tmp_path / "ril")
    make_special(tmp_path / "ril" / "mmvet" / file, kind)
    result = score(tmp_path / "ril")
    check_outcomes(result, "mmvet")
    assert result.exit_code == 2
    assert file in result.output


def test_a_missing_file_is_named(whole: Path, tmp_path: Path) -> None:
    for file in (MANIFEST, SAMPLES, PREDICTIONS):
        shutil.copytree(whole, tmp_path / file)
        (tmp_path / file / "mmstar" / file).unlink()
        result = score(tmp_path / file)
        check_outcomes(result, "mmstar")
        assert f"{file}: No such file" in result.output


def test_linked_files_are_read(whole: Path, tmp_path: Path) -> None:
    """DVC may link the files of its cache into data/."""
    shutil.copytree(whole, tmp_path / "ril")
    path = tmp_path / "ril" / "mmstar" / PREDICTIONS
    path.unlink()
    path.symlink_to(whole / "mmstar" / PREDICTIONS)
    assert score(tmp_path / "ril").exit_code == 0


@pytest.mark.parametrize(
    ("name", "file", "change", "said"),
    [
        ("mathvista", SAMPLES, {"extra": {**NUMBER, "precision": "../../x"}}, "line 1, 'precision'"),
        ("mathvista", SAMPLES, {"extra": {**NUMBER, "precision": 10**40}}, "line 1, 'precision'"),
        ("mathvista", SAMPLES, {"extra": {**NUMBER, "precision": [1]}}, "line 1, 'extra.precision"),
        ("mathvista", SAMPLES, {"extra": {}}, "line 1, 'question_type'"),
        ("mathvista", SAMPLES, {"gold": 5}, "line 1, 'gold'"),
        ("mathvista", SAMPLES, {"groups": {"task": "t"}}, "line 1, 'groups.task'"),
        ("mmbench_en", SAMPLES, {"extra": {}}, "line 1, 'question'"),
        ("mmstar", SAMPLES, {"options": {"AB": "cat"}}, "line 1, 'options.AB"),
        ("mmstar", SAMPLES, {"options": None}, "line 1, 'options'"),
        ("mmstar", SAMPLES, {"more": 1}, "line 1, 'more'"),
        ("mmstar", SAMPLES, {"index": "\ud800"}, "line 1, 'index'"),
        ("mmstar", PREDICTIONS, {"prediction": ["a"]}, "line 1, 'prediction': Input should be a valid string"),
        ("mmstar", PREDICTIONS, {"completion_tokens": 10**30}, "line 1, 'completion_tokens'"),
        ("mmstar", PREDICTIONS, {"index": "nobody"}, "line 1: 'nobody' is not a row of samples.jsonl"),
        ("mmvet", JUDGE, {"text": 1}, "line 1, 'text'"),
        ("mmvet", JUDGE, {"index": "nobody"}, "line 1: 'nobody' is not a row"),
    ],
)
def test_a_wrong_value_is_named(
    whole: Path, tmp_path: Path, name: str, file: str, change: dict[str, Any], said: str
) -> None:
    shutil.copytree(whole, tmp_path / "ril")
    path = tmp_path / "ril" / name / file
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), **change}), *rest]) + "\n", encoding="utf-8")
    result = score(tmp_path / "ril")
    check_outcomes(result, name)
    assert f"{file}, {said}" in result.output


def test_a_reply_with_half_surrogates_is_scored(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "ril")
    path = tmp_path / "ril" / "mmstar" / PREDICTIONS
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), "prediction": "A\ud800"}), *rest]) + "\n")
    assert score(tmp_path / "ril").exit_code == 0


# --- benchmark files, predictions of other harnesses ----------------------------------------------------------------


def check_table(folder: Path) -> str:
    """Why a benchmark's table can't be read; "" if it can: then its rows can be scored."""
    (file,) = folder.glob("*.tsv")
    spec = next(spec for spec in load_registry().values() if file.stem in [tsv.name for tsv in spec.tsv])
    try:
        with limit_time(SECONDS):
            samples = load_benchmark(spec, folder).samples
    except BenchmarkError as error:
        return str(error)
    replies = {one.index: BenchmarkReply(one.index, "The answer is [1, 2] or B.") for one in samples}
    for profile in spec.scorers:
        compute_benchmark_scores(spec, samples, replies, profile)
    return ""


def test_broken_tables_are_refused_or_scored(tables: Path, tmp_path: Path) -> None:
    reasons = []
    known = {f"{tsv.name}.tsv" for spec in load_registry().values() for tsv in spec.tsv}
    names = sorted(known.intersection(path.name for path in tables.glob("*.tsv")))
    for rng in draw_inputs():
        name = rng.choice(names)
        (tmp_path / name).write_bytes(mutate_table((tables / name).read_bytes(), rng))
        reasons.append(check_table(tmp_path))
        (tmp_path / name).unlink()
    assert 0 < reasons.count("") < len(reasons)
    assert max(map(len, reasons)) < 2000


LITERALS = (
    *(
        "[" * 3000,
        "-" * 3000 + "1",
        "1+" * 20000 + "1",
        "[1, [2]]",
        "{}",
        "()",
        "\ud800",
        "9" * 5000,
        "",
        "nan",
        "None",
    ),
    *("[1e999999999]", "['a'", "\x00", "1_0", "١", "[b'a']", "{1: 2}", "[" + "1," * 50_000 + "]"),
)


def mutate_table(content: bytes, rng: random.Random) -> bytes:
    """A cell replaced by a hostile literal, or bytes changed."""
    if rng.random() < 0.4:
        return mutate_bytes(content, rng)
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    cells = lines[place].split(b"\t")
    cells[rng.randrange(len(cells))] = rng.choice(LITERALS).encode("utf-8", "surrogatepass")
    lines[place] = b"\t".join(cells)
    return b"\n".join(lines)


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_special_table_is_refused(tables: Path, tmp_path: Path, kind: str) -> None:
    shutil.copyfile(tables / "MMStar.tsv", tmp_path / "MMStar.tsv")
    make_special(tmp_path / "MMStar.tsv", kind)
    with limit_time(SECONDS), pytest.raises(BenchmarkError):
        load_benchmark(load_registry()["mmstar"], tmp_path)


def test_broken_predictions_of_other_harnesses_are_refused_or_taken(tables: Path, tmp_path: Path) -> None:
    samples = load_benchmark(load_registry()["mmstar"], tables).samples
    lines = [{"doc_id": place, "target": one.gold, "resps": [["A"]]} for place, one in enumerate(samples)]
    table = "index\tanswer\tprediction\n" + "".join(f"{one.index}\t{one.gold}\tA\n" for one in samples)
    taken, refused = [], []
    for rng in draw_inputs():
        path = tmp_path / rng.choice(("x.jsonl", "x.tsv"))
        if path.suffix == ".tsv":
            path.write_bytes(mutate_table(table.encode(), rng))
        else:
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            mutate_file(path, rng)
        try:
            with limit_time(SECONDS):
                record = import_predictions(path, samples, "mmstar")
        except BenchmarkError as error:
            refused.append(str(error))
        else:
            taken.append(record)
            write_benchmark_record(tmp_path / "out" / "mmstar", record)
    assert taken
    assert max(map(len, refused)) < 2000
