"""Export and import of predictions in the formats of VLMEvalKit and lmms-eval; texts stay texts ("007", "None")."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from stages.benchmarks.predictions import BenchmarkRecord
from stages.benchmarks.record_rows import read_json_lines
from stages.benchmarks.registry import find_benchmark
from stages.benchmarks.sample import BenchmarkError, Sample
from stages.benchmarks.scorers import LMMS
from stages.benchmarks.scores import BenchmarkReply, score_row
from stages.benchmarks.tables import normalise_column, require_columns, split_records
from stages.corpora.numbers import read_number_only
from stages.job.bounded import replace_surrogates, show_value
from stages.job.files import replacing

Layout = Literal["vlmeval", "lmms"]
LAYOUTS: tuple[Layout, ...] = ("vlmeval", "lmms")
_GROUPS_OF_VLMEVAL = ("category", "l2-category", "split", "task", "skills", "capability")


def export_predictions(record: BenchmarkRecord, layout: Layout, folder: Path, model: str) -> Path:
    """Writes one benchmark's predictions in the format of that harness, and returns the file.

    VLMEvalKit (PRED_FORMAT=tsv): <model>_<dataset>.tsv with the data set's columns except `image`, and `prediction`.
    lmms-eval: <model>_samples_<task>.jsonl with doc_id, target, filtered_resps and the score.
    """
    spec = find_benchmark(record.benchmark)
    rows = [(sample, record.replies[sample.index]) for sample in record.samples if sample.index in record.replies]
    if layout == "vlmeval":
        name = spec.tsv[0].name if spec.tsv else spec.id
        return _write_tsv(folder / f"{model}_{name}.tsv", [_make_vlmeval_row(sample, reply) for sample, reply in rows])
    path = folder / f"{model}_samples_{spec.id}.jsonl"
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for place, (sample, reply) in enumerate(rows):
            handle.write(json.dumps(_make_lmms_row(record, place, sample, reply), ensure_ascii=False) + "\n")
    return path


def _make_vlmeval_row(sample: Sample, reply: BenchmarkReply) -> dict[str, str]:
    groups = {name: ",".join(values) for name, values in sample.groups.items() if name in _GROUPS_OF_VLMEVAL}
    extra = {key: "" if value is None else str(value) for key, value in sample.extra.items() if key != "prompt"}
    row = {
        "index": sample.index,
        "question": sample.question,
        "hint": sample.hint,
        **sample.options,
        "answer": sample.gold,
    }
    return {**row, **groups, **extra, "prediction": reply.text}


def _write_tsv(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    head = list(dict.fromkeys(key for row in rows for key in row if key != "prediction"))
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, [*head, "prediction"], delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _make_lmms_row(record: BenchmarkRecord, place: int, sample: Sample, reply: BenchmarkReply) -> dict[str, Any]:
    spec = find_benchmark(record.benchmark)
    known = not spec.needs_judge and spec.scorer(LMMS, record.cot) is not None
    outcome = score_row(spec, sample, reply, LMMS, record.cot, {}) if known else None
    row: dict[str, Any] = {
        "doc_id": place,
        "index": sample.index,
        "target": sample.gold,
        "filtered_resps": [reply.text],
    }
    return row if outcome is None else {**row, "score": outcome.score}


@dataclass(frozen=True)
class ForeignReply:
    """A reply that another harness stored."""

    where: str  # file and row, for messages
    index: str
    text: str
    target: object = None  # what that harness took for the reference; None or "" if the file does not say


def import_predictions(path: Path, samples: Sequence[Sample], benchmark: str) -> BenchmarkRecord:
    """Returns a record of another harness's predictions: a TSV of VLMEvalKit, or JSONL samples of lmms-eval.

    Rows are matched by `index`, else (lmms-eval) by their position `doc_id`. Raises BenchmarkError for other file
    types, for rows that the benchmark does not have, for duplicate answers to a row, and for rows whose reference is
    another one: then the predictions are of another file, or in another order.
    """
    if path.suffix == ".tsv":
        found = _read_tsv(path)
    elif path.suffix == ".jsonl":
        found = _read_samples(path, samples)
    else:
        raise BenchmarkError(f"{path}: .tsv (VLMEvalKit) and .jsonl (lmms-eval) are read; save an .xlsx as TSV")
    known = {sample.index: sample for sample in samples}
    replies: dict[str, BenchmarkReply] = {}
    for one in found:
        if one.index not in known and one.index.removesuffix(".0") in known:  # a number that pandas has read as float
            one = replace(one, index=one.index.removesuffix(".0"))
        if one.index not in known:
            raise BenchmarkError(
                f"{one.where}: {show_value(one.index)} is not a row of {benchmark}; are these of another file?"
            )
        if one.index in replies:
            raise BenchmarkError(f"{one.where}: a second answer to {show_value(one.index)}; drop one")
        gold = known[one.index].gold
        if contradicts_gold(one.target, known[one.index]):
            raise BenchmarkError(
                f"{one.where}: the target is {show_value(one.target)}, but row {one.index} of {benchmark} has the "
                f"answer {show_value(gold)}; they are of another file or order: import them with their own file"
            )
        replies[one.index] = BenchmarkReply(one.index, one.text)
    manifest = {"source": f"imported from {path.name}", "model": path.stem, "style": "unknown", "cot": "off"}
    return BenchmarkRecord(benchmark, manifest, [replace(sample, pictures=()) for sample in samples], replies, {})


def contradicts_gold(target: object, sample: Sample) -> bool:
    """Returns whether a harness's reference for a row is another one than the row's.

    An option may be given as letter, "(B)", place from 0, or text; a reference may be one of a list. A target in a form
    that is none of these says nothing.
    """
    targets = target if isinstance(target, list) else [target]
    meant = {one for one in (_name_target(value, sample) for value in targets) if one is not None}
    return bool(meant) and _name_target(sample.gold, sample) not in meant


def _name_target(value: object, sample: Sample) -> str | Fraction | None:
    """Returns the option letter that a reference means; without options its number or text. None: it can't be told."""
    if not isinstance(value, str | int | float) or str(value).strip() == "":
        return None
    text = " ".join(str(value).split()).casefold()
    if not sample.options:
        number = read_number_only(text)
        return text if number is None else number
    letters = list(sample.options)
    for place, (letter, option) in enumerate(sample.options.items()):
        if text.strip("().") == letter.casefold():
            return letter
        if value == place and not isinstance(value, bool | str):
            return letters[place]
        if text == " ".join(option.split()).casefold():
            return letter
    return None


def _read_tsv(path: Path) -> list[ForeignReply]:
    rows = split_records(path)
    names = [normalise_column(name) for name in next(rows, (0, 0, []))[2]]
    require_columns(("index", "prediction"), names, path)
    found = []
    for number, (_, _, row) in enumerate(rows, 1):
        where = f"{path.name}, row {number}"
        if len(row) != len(names):
            raise BenchmarkError(f"{where}: {len(row)} cells under {len(names)} columns; quote tabs and newlines")
        cells = dict(zip(names, row, strict=True))
        found.append(ForeignReply(where, cells["index"], cells["prediction"], cells.get("answer")))
    return found


def _read_place(value: object) -> int | None:
    """Returns a row number that may be given as text or float ("3", 3.0); None for anything else."""
    text = str(value).removesuffix(".0")
    return int(text) if not isinstance(value, bool) and text.isascii() and text.isdigit() and len(text) < 10 else None


def _read_samples(path: Path, samples: Sequence[Sample]) -> list[ForeignReply]:
    found = []
    for where, row in read_json_lines(path):
        replies = row.get("filtered_resps", row.get("resps"))
        while isinstance(replies, list) and replies:
            replies = replies[0]
        if not isinstance(replies, str):
            raise BenchmarkError(f"{where}: no text in filtered_resps or resps; was it written with --log_samples?")
        place, index = _read_place(row.get("doc_id")), row.get("index")
        if index is None:
            if place is None or not 0 <= place < len(samples):
                given = show_value(row.get("doc_id"))
                raise BenchmarkError(f"{where}: doc_id {given} is no place among {len(samples)} rows")
            index = samples[place].index
        if not isinstance(index, str | int | float) or isinstance(index, bool):
            raise BenchmarkError(f"{where}: the index is {show_value(index)}; text or a number is needed")
        found.append(ForeignReply(where, str(index), replace_surrogates(replies), row.get("target")))
    return found
