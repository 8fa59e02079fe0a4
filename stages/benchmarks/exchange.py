"""Export and import of predictions in the formats of VLMEvalKit and lmms-eval; texts stay texts ("007", "None")."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from stages.benchmarks.predictions import BenchmarkRecord, read_jsonl
from stages.benchmarks.registry import find_benchmark
from stages.benchmarks.sample import BenchmarkError, Sample
from stages.benchmarks.scorers import LMMS
from stages.benchmarks.scores import BenchmarkReply, score_row
from stages.benchmarks.tables import CELL_LIMIT, normalise_column, require_columns
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


def import_predictions(path: Path, samples: Sequence[Sample], benchmark: str) -> BenchmarkRecord:
    """Returns a record of another harness's predictions: a TSV of VLMEvalKit, or JSONL samples of lmms-eval.

    Rows are matched by `index`, else (lmms-eval) by their position `doc_id`. Raises BenchmarkError for other file
    types, for rows that the benchmark does not have, and for duplicate answers to a row.
    """
    if path.suffix == ".tsv":
        pairs = _read_tsv(path)
    elif path.suffix == ".jsonl":
        pairs = _read_samples(path, samples)
    else:
        raise BenchmarkError(f"{path}: .tsv (VLMEvalKit) and .jsonl (lmms-eval) are read; save an .xlsx as TSV")
    known = {sample.index for sample in samples}
    replies: dict[str, BenchmarkReply] = {}
    for where, index, text in pairs:
        if index not in known:
            raise BenchmarkError(
                f"{where}: {index!r} is not a row of {benchmark}; are these predictions of another file?"
            )
        if index in replies:
            raise BenchmarkError(f"{where}: a second answer to {index!r}; drop one")
        replies[index] = BenchmarkReply(index, text)
    manifest = {"source": f"imported from {path.name}", "model": path.stem, "style": "unknown", "cot": "off"}
    return BenchmarkRecord(benchmark, manifest, [replace(sample, pictures=()) for sample in samples], replies, {})


def _read_tsv(path: Path) -> list[tuple[str, str, str]]:
    csv.field_size_limit(CELL_LIMIT)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = [row for row in csv.reader(handle, delimiter="\t") if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path}: can't be read ({error}); write the file again") from None
    names = [normalise_column(name) for name in rows[0]] if rows else []
    require_columns(("index", "prediction"), names, path)
    index, prediction = names.index("index"), names.index("prediction")
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(names):
            raise BenchmarkError(
                f"{path.name}, row {number}: {len(row)} cells under {len(names)} columns; quote tabs and newlines"
            )
    return [(f"{path.name}, row {number}", row[index], row[prediction]) for number, row in enumerate(rows[1:], 1)]


def _read_samples(path: Path, samples: Sequence[Sample]) -> list[tuple[str, str, str]]:
    found = []
    for number, row in read_jsonl(path):
        where = f"{path.name}, line {number}"
        replies = row.get("filtered_resps", row.get("resps"))
        while isinstance(replies, list) and replies:
            replies = replies[0]
        if not isinstance(replies, str):
            raise BenchmarkError(f"{where}: no text in filtered_resps or resps; was it written with --log_samples?")
        place = row.get("doc_id")
        if "index" not in row and not (isinstance(place, int) and 0 <= place < len(samples)):
            raise BenchmarkError(f"{where}: doc_id {place!r} is no place among {len(samples)} rows")
        index = str(row["index"]) if "index" in row else samples[int(str(place))].index
        found.append((where, index, replies))
    return found
