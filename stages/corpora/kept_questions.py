"""The questions of RIL: those that stage `selection` keeps, as a list of ids."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from stages.corpora.rows import QuestionFolder, find_places
from stages.job.files import ROWS_PER_SHARD, read_shards, write_parquet

KEPT_SCHEMA = pa.schema([("split", pa.string()), ("id", pa.string())])


class StaleSelection(ValueError):
    """A list of kept questions that are not in data/questions; the message names one and the remedy."""


def write_kept_questions(folder: Path, split: str, names: Iterable[str]) -> None:
    """Writes the ids of the kept questions of `split` into `folder`, as shards with rows of KEPT_SCHEMA."""
    ids = list(names)
    for part, start in enumerate(range(0, max(len(ids), 1), ROWS_PER_SHARD)):
        chosen = ids[start : start + ROWS_PER_SHARD]
        table = pa.table([[split] * len(chosen), chosen], schema=KEPT_SCHEMA)
        write_parquet(folder / f"part-{part:05d}.parquet", table)


def open_kept_questions(questions: Path, kept: Path) -> QuestionFolder:
    """Returns the kept questions in the order of their split. `kept` is a folder of `write_kept_questions`.

    Raises StaleSelection if the list is empty or names questions that are not there.
    """
    rows = read_shards(kept)
    splits, names = rows["split"].unique().to_pylist(), set(rows["id"].to_pylist())
    if len(splits) != 1:
        raise StaleSelection(f"{kept} lists questions of {len(splits)} splits, not of one; run: dvc repro selection")
    places = find_places(questions, splits[0], names)
    if len(places) != len(names):
        there = {row["id"] for row in QuestionFolder(questions, splits[0], places).iter_columns(["id"])}
        raise StaleSelection(
            f"{kept} lists question {min(names - there)!r}, which is not in {questions / splits[0]}; run: "
            "dvc repro selection"
        )
    return QuestionFolder(questions, splits[0], places)
