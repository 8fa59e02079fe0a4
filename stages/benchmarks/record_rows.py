"""The format of the files of a benchmark's record, checked in one place: types, lengths, characters, bounds.

A file may be anything: pydantic's strict types decide what a value may be, and the first fault is named with its key.
"""

import os
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.benchmarks.sample import BenchmarkError
from stages.benchmarks.tables import MOST_ROWS
from stages.config.regular import explain_decoding, explain_os_error, open_regular
from stages.config.verdict import VerdictForm
from stages.job.bounded import UnusableFile, parse_json, replace_surrogates, show_path, show_value

LONGEST_LINE = 16 << 20  # bytes; images are in no row
_INT32 = 2**31 - 1
REPLY_KEYS = ("prediction", "text")  # of texts that a model wrote: they may hold half surrogates

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Letter = Annotated[str, Field(pattern="^[A-Z]$")]
Reference = Annotated[str, Field(max_length=10_000)]
Scalar = (
    Annotated[str, Field(max_length=100_000)]
    | Annotated[int, Field(ge=-(2**63), lt=2**63)]
    | Annotated[float, Field(allow_inf_nan=False)]
    | bool
    | None
)


class Row(BaseModel):
    """Values of exactly these types."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class SampleRow(Row):
    """A line of samples.jsonl."""

    index: Name
    question: str
    gold: Reference
    options: dict[Letter, Reference] = {}
    hint: str = ""
    groups: dict[Name, list[Name]] = {}
    extra: dict[Name, Scalar] = {}


class ReplyRow(Row):
    """A line of predictions.jsonl."""

    index: Name
    prediction: str
    finish_reason: str = "stop"
    completion_tokens: Annotated[int, Field(ge=0, le=_INT32)] = 0
    response_key: str = ""
    prompt: str = ""


class JudgeRow(Row):
    """A line of judge.jsonl."""

    index: Name
    prompt: str
    text: str | None
    form: VerdictForm = "tag"


class Manifest(Row):
    """manifest.json; values for readers are kept whatever they are."""

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)

    benchmark: Name
    cot: Literal["on", "off"] = "off"
    judge: Name | None = None
    source: Name | None = None
    model: Name | None = None
    style: Name | None = None


_RowType = TypeVar("_RowType", bound=BaseModel)


def validate_row(kind: type[_RowType], value: object, where: str) -> _RowType:
    """Returns the row of a JSON value. Raises BenchmarkError with key and value for the first fault."""
    if isinstance(value, dict):
        value = {key: _clean_reply(inner) if key in REPLY_KEYS else inner for key, inner in value.items()}
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        places = [str(place) for place in first["loc"]]
        key = f", {show_value('.'.join(places))}" if places else ""
        found = _find_value(value, first["loc"])
        raise BenchmarkError(
            f"{where}{key}: {first['msg']}, found {show_value(found)}; correct the row or write the file again"
        ) from None


def _clean_reply(text: object) -> object:
    return replace_surrogates(text) if isinstance(text, str) else text


def _find_value(value: Any, place: tuple[int | str, ...]) -> object:
    """Returns the innermost value that exists at `place`, which also names members of unions."""
    for step in place:
        inside = step in value if isinstance(value, Mapping) else isinstance(value, list) and isinstance(step, int)
        value = value[step] if inside else value
    return value


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the object in manifest.json. Raises BenchmarkError for anything else."""
    where = show_path(path)
    line = b"".join(text for _, text in _iter_lines(path, LONGEST_LINE))
    return validate_row(Manifest, _parse(line, where), where).model_dump(exclude_unset=True)


def iter_record_rows(path: Path, kind: type[_RowType]) -> Iterator[tuple[str, _RowType]]:
    """Yields each line of a JSONL file as a row, with file and line for messages. Raises BenchmarkError."""
    for where, value in read_json_lines(path):
        yield where, validate_row(kind, value, where)


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the object of each line, with file and line for messages. Raises BenchmarkError for anything else.

    A byte order mark at the start and blank lines are passed over.
    """
    for number, line in _iter_lines(path, MOST_ROWS * LONGEST_LINE):
        where = f"{show_path(path)}, line {number}"
        line = line.removeprefix(BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        if number > MOST_ROWS:
            raise BenchmarkError(f"{where}: more than {MOST_ROWS:,} rows; is it the right file?")
        value = _parse(line, where)
        if not isinstance(value, dict):
            raise BenchmarkError(f"{where}: expected an object, found {show_value(value)}; drop the line")
        yield where, value


def _parse(line: bytes, where: str) -> Any:
    try:
        return parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{where}: {explain_decoding(error)}") from None
    except UnusableFile as error:
        raise BenchmarkError(f"{where}: {error}; drop the line, or write the file again") from None


def _iter_lines(path: Path, most_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yields number and bytes of each line of a regular file; only one line is in memory."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            number, total = 0, 0
            while line := file.readline(LONGEST_LINE + 1):
                number, total = number + 1, total + len(line)
                if len(line) > LONGEST_LINE or total > most_bytes:
                    raise BenchmarkError(
                        f"{show_path(path)}, line {number}: longer than {LONGEST_LINE:,} bytes; is it the right file?"
                    )
                yield number, line
    except OSError as error:
        raise BenchmarkError(f"{show_path(path)}: {explain_os_error(error)}; write the file again") from None
