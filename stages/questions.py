"""Questions: converts user data or the tiny world to canonical rows in four splits.

Reads    the tiny world, or the file or folder `questions.path`
Writes   data/questions/{warm_start,imitation,validation,test}/part-*.parquet, reports/questions/rejects.jsonl
Run      dvc repro questions

No image is in two splits: images used for training in `warm_start` or `imitation` are never scored in `validation` or
`test`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from stages.config.questions import Questions
from stages.config.world import World
from stages.corpora.adapters import UnusableRow, read_user_rows
from stages.corpora.rows import QUESTION_SCHEMA
from stages.corpora.source import Canonical
from stages.job.files import write_shards, write_text
from stages.job.hashes import hash_json
from stages.job.job import Job
from stages.job.seeds import derive_seed


def run(job: Job) -> None:
    """Writes the four splits and their metrics.

    Raises ValueError when a split cannot be filled or too many source rows are unusable.
    """
    questions = job.block(Questions)
    splits, rejects = (
        draw_world_splits(job, questions) if questions.kind == "world" else split_user_rows(job, questions)
    )

    lines = (json.dumps(vars(reject), ensure_ascii=False) + "\n" for reject in rejects)
    write_text(job.reports / "rejects.jsonl", "".join(lines))
    read = sum(map(len, splits.values())) + len(rejects)
    if len(rejects) > questions.max_reject_share * read:
        raise ValueError(
            f"{len(rejects)} of {read} rows of {questions.path} are unusable, more than questions.max_reject_share "
            f"({questions.max_reject_share}); reasons in {job.reports / 'rejects.jsonl'}, the first: "
            f"{rejects[0].reason}"
        )
    with job.writing() as folder:
        for split, rows in splits.items():
            write_shards(folder / split, rows, QUESTION_SCHEMA)
    job.write_metrics(compute_metrics(splits, len(rejects)))
    job.progress.show_table("questions", [{"split": split, **_count_rows(rows)} for split, rows in splits.items()])


def draw_world_splits(job: Job, questions: Questions) -> tuple[dict[str, list[Canonical]], list[UnusableRow]]:
    """Returns the splits of the tiny world; a duplicate image is drawn again."""
    seen: set[str] = set()

    def drop_repeated(rows: Iterator[Canonical]) -> Iterator[Canonical]:
        for row in rows:
            if row["image_sha256"][0] not in seen:
                seen.add(row["image_sha256"][0])
                yield row

    from stages.tiny.world_rows import iter_world_rows  # local import: user data does not depend on it

    splits: dict[str, list[Canonical]] = {}
    for split, count in questions.splits.items():
        rows = islice(drop_repeated(iter_world_rows(job.block(World), split)), count)
        splits[split] = list(job.progress.track(rows, f"drawing {split}", total=count))
    return splits, []


def split_user_rows(job: Job, questions: Questions) -> tuple[dict[str, list[Canonical]], list[UnusableRow]]:
    """Distributes user rows over the splits; rows that share an image go to the same split.

    The split of a row is a function of its first image (or of its id, without an image), not of its place in the file.
    """
    rows: list[Canonical] = []
    rejects: list[UnusableRow] = []
    for row in job.progress.track(read_user_rows(questions, job.root), "reading questions"):
        rejects.append(row) if isinstance(row, UnusableRow) else rows.append(row)
    repeated = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise ValueError(f"{questions.path}: id {repeated[0]!r} is in more than one row; ids must be unique")

    wanted = sum(questions.splits.values())
    if len(rows) < wanted:
        raise ValueError(
            f"{questions.path} has {len(rows)} usable rows, questions.splits asks for {wanted}; lower the splits"
        )
    splits: dict[str, list[Canonical]] = {split: [] for split in questions.splits}
    owner: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: derive_seed("split", (row["image_sha256"] or [row["id"]])[0], row["id"])):
        images = row["image_sha256"] or [row["id"]]
        owners = {owner[image] for image in images if image in owner}
        if len(owners) > 1:
            rejects.append(UnusableRow(-1, row["id"], f"its images are in several splits: {', '.join(sorted(owners))}"))
            continue
        split = owners.pop() if owners else _find_emptiest(splits, questions)
        owner.update(dict.fromkeys(images, split))
        if len(splits[split]) < questions.splits[split]:  # type: ignore[index]
            splits[split].append(row if split == "warm_start" else _drop_target(row))
    wanted_of = {str(split): count for split, count in questions.splits.items()}
    short = [f"{split} ({len(rows)})" for split, rows in splits.items() if len(rows) < wanted_of[split]]
    if short:
        raise ValueError(
            f"{questions.path}: too few rows with unshared images for {', '.join(short)}; lower the splits"
        )
    return splits, rejects


def _find_emptiest(splits: dict[str, list[Canonical]], questions: Questions) -> str:
    return min(splits, key=lambda split: len(splits[split]) / questions.splits[split])  # type: ignore[index]


def _drop_target(row: Canonical) -> Canonical:
    """Removes the assistant turn of a row: outside `warm_start` the answer is the reference, not a target."""
    messages = row["messages"]
    return {**row, "messages": messages[:-1] if messages[-1]["role"] == "assistant" else messages}


def _count_rows(rows: list[Canonical]) -> dict[str, Any]:
    kinds = Counter(row["kind"] for row in rows)
    return {
        "questions": len(rows),
        "images": len({i for row in rows for i in row["image_sha256"]}),
        "kinds": dict(kinds),
    }


def compute_metrics(splits: dict[str, list[Canonical]], rejects: int) -> dict[str, Any]:
    """Returns counts per split and a content hash that does not depend on the parquet encoding."""
    content = sorted([row["id"], row["image_sha256"], row["messages"]] for rows in splits.values() for row in rows)
    counts = {split: _count_rows(rows) for split, rows in splits.items()}
    return {"splits": counts, "rejects": rejects, "content_sha256": hash_json(content)}
