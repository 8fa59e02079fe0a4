"""The folder of one benchmark's answers: enough to score again, under any profile, without model, judge, GPU or images.

manifest.json      what was asked, from which file, in which style, of which model
samples.jsonl      the benchmark's rows without pictures
predictions.jsonl  one reply a row, in the order of the rows; a projection of the response store
judge.jsonl        what the judge said, where one was asked
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from stages.benchmarks.sample import BenchmarkError, Sample
from stages.benchmarks.scores import BenchmarkReply
from stages.benchmarks.verdicts import TEMPLATE, JudgeReply
from stages.job.files import read_json, replacing, write_json

MANIFEST, SAMPLES, PREDICTIONS, JUDGE = "manifest.json", "samples.jsonl", "predictions.jsonl", "judge.jsonl"
_T = TypeVar("_T")


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
    """Returns the record in a folder. Raises BenchmarkError with file and line for invalid or duplicate rows."""
    manifest = read_json(folder / MANIFEST)
    samples = [Sample.from_row(row) for _, row in read_jsonl(folder / SAMPLES)]
    known = {sample.index for sample in samples}
    if len(known) != len(samples):
        raise BenchmarkError(
            f"{folder / SAMPLES}: two rows have the same index; write the folder again with: dvc repro evaluate"
        )
    replies: dict[str, BenchmarkReply] = {}
    for number, row in read_jsonl(folder / PREDICTIONS):
        reply = BenchmarkReply(**{("text" if key == "prediction" else key): value for key, value in row.items()})
        where = f"{folder / PREDICTIONS}, line {number}"
        if reply.index in replies:
            raise BenchmarkError(f"{where}: a second answer to {reply.index!r}; drop one of the lines")
        if reply.index not in known:
            raise BenchmarkError(
                f"{where}: {reply.index!r} is not a row of {folder / SAMPLES}; the files are of different runs"
            )
        replies[reply.index] = reply
    said = [JudgeReply(**row) for _, row in read_jsonl(folder / JUDGE)] if (folder / JUDGE).is_file() else []
    return BenchmarkRecord(
        str(manifest["benchmark"]), manifest, samples, replies, {reply.index: reply for reply in said}
    )


def find_records(folder: Path) -> dict[str, Path]:
    """Returns record folders below `folder` by benchmark. Raises BenchmarkError for none, or two of one."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(MANIFEST)):
        name = path.parent.name
        if name in found:
            raise BenchmarkError(f"{found[name]} and {path.parent} are both {name}; give the folder of one model")
        found[name] = path.parent
    if not found:
        raise BenchmarkError(f"{folder}: no {MANIFEST} in it or below; give a folder such as data/evaluate/ril")
    return found


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields number and value of each line of a JSONL file. Raises BenchmarkError if one is not a JSON object."""
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            try:
                value = json.loads(line)
            except ValueError as error:
                raise BenchmarkError(
                    f"{path}, line {number}: is not JSON ({error}); drop the line, or write the file again"
                ) from None
            if not isinstance(value, dict):
                raise BenchmarkError(f"{path}, line {number}: expected an object, found {type(value).__name__}")
            yield number, value


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
