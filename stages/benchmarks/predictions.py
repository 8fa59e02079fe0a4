"""The folder of one benchmark's answers: enough to score again, under any profile, without model, judge, GPU or images.

manifest.json      what was asked, from which file, in which style, of which model
samples.jsonl      the benchmark's rows without pictures
predictions.jsonl  one reply a row, in the order of the rows; a projection of the response store
judge.jsonl        what the judge said, where one was asked
"""

import json
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.benchmarks.record_rows import JudgeRow, ReplyRow, SampleRow, iter_record_rows, read_manifest
from stages.benchmarks.registry import find_benchmark
from stages.benchmarks.sample import BenchmarkError, Sample
from stages.benchmarks.scores import BenchmarkReply
from stages.benchmarks.spec import check_sample
from stages.benchmarks.verdicts import TEMPLATE, JudgeReply
from stages.job.bounded import show_path, show_value
from stages.job.files import replacing, write_json

MANIFEST, SAMPLES, PREDICTIONS, JUDGE = "manifest.json", "samples.jsonl", "predictions.jsonl", "judge.jsonl"


@dataclass(frozen=True)
class BenchmarkRecord:
    """The answers of one model to one benchmark."""

    benchmark: str
    manifest: Mapping[str, Any]
    samples: Sequence[Sample]
    replies: Mapping[str, BenchmarkReply]
    judge: Mapping[str, JudgeReply]

    @property
    def cot(self) -> bool:
        """Whether the prompts request reasoning steps."""
        return self.manifest.get("cot") == "on"


def write_benchmark_record(folder: Path, record: BenchmarkRecord) -> None:
    """Writes the four files; equal records give equal bytes."""
    write_json(folder / MANIFEST, {**record.manifest, "benchmark": record.benchmark, "judge_template": TEMPLATE})
    _write_jsonl(folder / SAMPLES, (sample.to_row() for sample in record.samples))
    ordered = (record.replies[sample.index] for sample in record.samples if sample.index in record.replies)
    _write_jsonl(folder / PREDICTIONS, (_make_reply_row(reply) for reply in ordered))
    _write_jsonl(folder / JUDGE, (asdict(reply) for reply in record.judge.values()))


def _make_reply_row(reply: BenchmarkReply) -> dict[str, Any]:
    row = asdict(reply)
    return {"index": row.pop("index"), "prediction": row.pop("text"), **row}


def read_benchmark_record(folder: Path) -> BenchmarkRecord:
    """Returns the record in a folder.

    Raises BenchmarkError with file, line, key and value for whatever is no record (record_rows.py).
    """
    manifest = read_manifest(folder / MANIFEST)
    spec = find_benchmark(manifest["benchmark"])
    samples: dict[str, Sample] = {}
    for where, row in iter_record_rows(folder / SAMPLES, SampleRow):
        _refuse_second(where, row.index, samples)
        samples[row.index] = Sample.from_row(row.model_dump())
        check_sample(spec, samples[row.index], where)
    if not samples:
        raise BenchmarkError(f"{folder / SAMPLES}: has no row; write the folder again with: dvc repro evaluate")
    replies: dict[str, BenchmarkReply] = {}
    for where, reply in iter_record_rows(folder / PREDICTIONS, ReplyRow):
        _refuse_second(where, reply.index, replies, samples)
        replies[reply.index] = BenchmarkReply(text=reply.prediction, **reply.model_dump(exclude={"prediction"}))
    said: dict[str, JudgeReply] = {}
    for where, judged in iter_record_rows(folder / JUDGE, JudgeRow) if os.path.lexists(folder / JUDGE) else ():
        _refuse_second(where, judged.index, said, samples)
        said[judged.index] = JudgeReply(**judged.model_dump())
    return BenchmarkRecord(spec.id, manifest, list(samples.values()), replies, said)


def _refuse_second(where: str, index: str, found: Container[str], known: Container[str] | None = None) -> None:
    """Raises BenchmarkError for a row that is there already, or that the benchmark does not have."""
    if index in found:
        raise BenchmarkError(f"{where}: a second row {show_value(index)}; drop one of the lines")
    if known is not None and index not in known:
        raise BenchmarkError(
            f"{where}: {show_value(index)} is not a row of {SAMPLES} beside it; the files are of different runs"
        )


def find_records(folder: Path) -> dict[str, Path]:
    """Returns record folders below `folder` by name. Raises BenchmarkError for none, or two of one.

    A folder with any of the files is one, also where the manifest is missing or is no file: reading it says so.
    """
    found: dict[str, Path] = {}
    for above, folders, files in os.walk(folder):
        folders.sort()
        path = Path(above)
        if not {MANIFEST, SAMPLES, PREDICTIONS, JUDGE}.intersection((*files, *folders)):
            continue
        if path.name in found:
            both = f"{show_path(found[path.name])} and {show_path(path)}"
            raise BenchmarkError(f"{both} have the same name; give the folder of one model")
        found[path.name] = path
    if not found:
        raise BenchmarkError(
            f"{show_path(folder)}: no {MANIFEST} in it or below; give a folder such as data/evaluate/ril"
        )
    return found


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
