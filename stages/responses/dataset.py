"""Exports sets of a store as a Hugging Face data set (parquet files and a card); `merge` imports them."""

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from stages.config.image_limits import read_limits
from stages.job.files import replacing_folder, write_json, write_text
from stages.responses.about import ABOUT
from stages.responses.segment_rows import write_files
from stages.responses.sets import (
    Say,
    SetStatistics,
    choose_columns,
    compute_set_statistics,
    read_descriptions,
    read_served,
)
from stages.responses.store import Store

ROWS_PER_FILE = 50 * 1024

Track = Callable[[Iterable[int]], Iterable[int]]


def _make_file_path(part: Path, numbers: Iterator[int]) -> Path:
    return part / f"part-{next(numbers):05d}.parquet"


def export_dataset(sets: Sequence[Path], folder: Path, say: Say, track: Track = iter) -> list[SetStatistics]:
    """Writes the served answers of `sets` into the empty folder `folder` and returns their statistics.

    `datasets.load_dataset(folder)` reads the first set, `load_dataset(folder, name)` any set. Raises FileExistsError if
    the folder is not empty, ValueError for a set with a file that is not usable: a published set should be complete.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder, or remove it first")
    counted = [compute_set_statistics(one, say) for one in sets]
    broken = [found.folder.name for found in counted if found.damaged]
    if broken:
        raise ValueError(f"{', '.join(broken)} has damaged segments; see `ril store verify`, move them away, try again")
    abouts = [read_descriptions(one)[0] for one in sets]
    for one in sets:
        for fault in read_descriptions(one)[1]:
            raise ValueError(f"{fault}; a published set should be complete")
    with replacing_folder(folder) as new:
        for one, about in zip(sets, abouts, strict=True):
            store = Store(one, say)
            part = new / one.name
            part.mkdir()
            columns = choose_columns(store.segments)
            numbers = iter(range(10**5))
            tables = (
                table for number in track(range(len(store.segments))) for table in read_served(store, number, columns)
            )
            write_files(
                tables,
                ROWS_PER_FILE,
                partial(_make_file_path, part, numbers),
            )
            if about:
                write_json(part / ABOUT, about)
        write_text(new / "README.md", make_card(list(zip(counted, abouts, strict=True))))
    return counted


def make_card(sets: Sequence[tuple[SetStatistics, dict[str, Any]]]) -> str:
    """Returns the data set's card: the metadata for the hub, and a section for each set."""
    licences = {_join_licences(about.get("license")) for _, about in sets}
    known = licences.pop() if len(licences) == 1 else None
    data = DatasetCardData(
        license=known or "other",
        pretty_name="Stored answers",
        task_categories=["visual-question-answering"],
        tags=["ril", "vllm", "synthetic"],
        size_categories=[_size_category(sum(found.answers for found, _ in sets))],
        configs=[
            {"config_name": found.folder.name, "data_files": f"{found.folder.name}/*.parquet", "default": place == 0}
            for place, (found, _) in enumerate(sets)
        ],
    )
    sections = "\n".join(_make_section(found, about) for found, about in sets)
    return f"---\n{data.to_yaml()}\n---\n\n{_HEAD}\n{sections}"


_HEAD = """# Stored answers

Answers of models to questions, one row an answer, exported from a response store of `ril`
(`ril store import` reads them back). `request` holds the messages and the sha256 of the images' bytes; the images
themselves are not in here. `key` is the sha256 of `request_key` and `sample`, `request_key` that of all that changes
what the model would write. `finish_reason` is `length` for an answer that was cut.
Rights to questions, images and answers are those of their sources: check the licence of each model below.
"""


def _make_section(found: SetStatistics, about: dict[str, Any]) -> str:
    settings = about.get("sampling") or {}
    sampling = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    facts = {
        "model": about.get("name"),
        "revision": about.get("revision"),
        "licence of the model": _join_licences(about.get("license")),
        "family": about.get("family"),
        "precision": about.get("precision"),
        "context, tokens": about.get("context_tokens"),
        "limits on images": str(read_limits(about.get("limits"))) or "those of the model's files",
        "sampling": sampling,
        "draw": about.get("draw"),
        "prompt template, sha256": about.get("template"),
        "answers": f"{found.answers:,}",
        "truncated": f"{found.truncated_share:.2%}",
        "answer tokens": f"{found.completion_tokens:,}",
        "engines": "; ".join(f"{name}: {count:,}" for name, count in sorted(found.engines.items())),
        "made": f"{_format_day(found.first_at)} to {_format_day(found.last_at)}",
        "seconds of engines": f"{found.seconds:,.0f}",
    }
    rows = "".join(f"| {name} | {_escape_cell(value)} |\n" for name, value in facts.items())
    return f"## {found.folder.name}\n\n| | |\n|---|---|\n{rows}"


def _join_licences(value: str | list[str] | None) -> str | None:
    return ", ".join(value) if isinstance(value, list) else value


def _escape_cell(value: Any) -> str:
    """Returns a value as a cell of a Markdown table."""
    return "unknown" if value in (None, "") else str(value).replace("|", "\\|").replace("\n", " ")


def _format_day(nanoseconds: int) -> str:
    return datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC).date().isoformat()


def _size_category(rows: int) -> str:
    """Returns the hub's size category for this many rows."""
    steps = [("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7)]
    return next((name for name, end in steps if rows < end), "10M<n<100M")
