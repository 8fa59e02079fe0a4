"""Questions: converts user data or the tiny world to canonical rows in four splits.

Reads    the tiny world, or the file or folder `questions.path`
Writes   data/questions/{warm_start,imitation,validation,test}/part-*.parquet, reports/questions/rejects.jsonl
Run      dvc repro questions

No image is in two splits: images used for training in `warm_start` or `imitation` are never scored in `validation` or
`test`.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from stages.config.plain import abbreviate
from stages.config.questions import Questions
from stages.config.world import World
from stages.corpora.adapters import UnusableRow, read_user_rows
from stages.corpora.rows import QUESTION_SCHEMA
from stages.corpora.source import Canonical, UnusableData
from stages.corpora.spool import ImageSpool
from stages.job.files import write_shards, write_text
from stages.job.hashes import hash_json
from stages.job.job import Job
from stages.job.seeds import derive_seed

SHOWN_REASONS = 3
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9][0-9,.]*")  # what differs between reasons of one kind


def run(job: Job) -> None:
    """Writes the four splits, the rejects and the metrics.

    Raises UnusableData when a split cannot be filled or too many source rows are unusable; the rejects are written
    before.
    """
    questions = job.block(Questions)
    if questions.kind == "world":
        _write_rejects(job, [])
        _write_splits(job, draw_world_splits(job, questions), 0, dict)
        return
    job.out.parent.mkdir(parents=True, exist_ok=True)
    spool = ImageSpool(job.out.parent)
    rows, rejects = read_rows(job, questions, spool)
    splits, shared = split_user_rows(rows, questions)
    rejects += shared
    _write_rejects(job, rejects)
    if fault := find_shortage(len(rows), splits, len(rejects), questions):
        listed = (
            f"; {count_reasons(rejects)}; all in {job.reports.relative_to(job.root) / 'rejects.jsonl'}"
            if rejects
            else ""
        )
        raise UnusableData(f"{fault}{listed}")
    _write_splits(job, splits, len(rejects), spool.take)


def _write_rejects(job: Job, rejects: Iterable[UnusableRow]) -> None:
    lines = (json.dumps(vars(reject), ensure_ascii=False) + "\n" for reject in rejects)
    write_text(job.reports / "rejects.jsonl", "".join(lines))


def _write_splits(
    job: Job,
    splits: Mapping[str, Sequence[Canonical]],
    rejects: int,
    complete: Callable[[Canonical], Canonical],
) -> None:
    """Writes rows and metrics; `complete` adds the images to a row."""
    with job.writing() as folder:
        for split, rows in splits.items():
            write_shards(folder / split, rows, QUESTION_SCHEMA, complete)
    job.write_metrics(compute_metrics(splits, rejects))
    job.progress.show_table("questions", [{"split": split, **_count_rows(rows)} for split, rows in splits.items()])


def draw_world_splits(job: Job, questions: Questions) -> dict[str, list[Canonical]]:
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
    return splits


def read_rows(job: Job, questions: Questions, spool: ImageSpool) -> tuple[list[Canonical], list[UnusableRow]]:
    """Returns the usable rows of users' data, their images in `spool`, and the rejects.

    An id that an earlier row has gets a number: LLaVA's own data have 250,000 rows that share ids.
    """
    rows: list[Canonical] = []
    rejects: list[UnusableRow] = []
    taken: set[str] = set()
    counts: Counter[str] = Counter()
    for row in job.progress.track(read_user_rows(questions, job.root), "reading questions"):
        if isinstance(row, UnusableRow):
            rejects.append(row)
            continue
        given = name = row["id"]
        while name in taken:
            counts[given] += 1
            name = f"{given}#{counts[given] + 1}"
        taken.add(name)
        rows.append(spool.put(row | {"id": name}))
    if counts:
        job.progress.say(
            f"{counts.total():,} rows have the id of an earlier row and get a number, such as "
            f"{abbreviate(next(iter(counts)) + '#2')}"
        )
    return rows, rejects


def split_user_rows(
    rows: Sequence[Canonical], questions: Questions
) -> tuple[dict[str, list[Canonical]], list[UnusableRow]]:
    """Distributes user rows over the splits; rows that share an image go to the same split.

    The split of a row is a function of its first image (or of its id, without an image), not of its place in the file.
    Returns the splits, and as rejects the rows whose images are in several.
    """
    rejects: list[UnusableRow] = []
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
    return splits, rejects


def find_shortage(
    usable: int, splits: Mapping[str, Sequence[Canonical]], rejects: int, questions: Questions
) -> str | None:
    """Returns why the stage fails, with the remedy; None if the splits are full and enough rows are usable."""
    path = questions.path
    wanted = sum(questions.splits.values())
    if usable < wanted:
        return f"{path} has {usable} usable rows, questions.splits asks for {wanted}; lower the splits"
    wanted_of = {str(split): count for split, count in questions.splits.items()}
    short = [f"{split} ({len(rows)})" for split, rows in splits.items() if len(rows) < wanted_of[split]]
    if short:
        return f"{path}: too few rows with unshared images for {', '.join(short)}; lower the splits"
    read = sum(map(len, splits.values())) + rejects
    if rejects > questions.max_reject_share * read:
        limit = questions.max_reject_share
        return f"{rejects} of {read} rows of {path} are unusable, more than questions.max_reject_share ({limit})"
    return None


def count_reasons(rejects: Sequence[UnusableRow]) -> str:
    """Returns the commonest kinds of reasons with their counts and an example each."""
    kinds = [_VALUES.sub("", reject.reason)[:80] for reject in rejects]
    first = dict(zip(reversed(kinds), reversed(rejects), strict=True))
    shown = [f"{count} rows: {first[kind].reason[:150]}" for kind, count in Counter(kinds).most_common(SHOWN_REASONS)]
    return "; ".join(shown)


def _find_emptiest(splits: dict[str, list[Canonical]], questions: Questions) -> str:
    return min(splits, key=lambda split: len(splits[split]) / questions.splits[split])  # type: ignore[index]


def _drop_target(row: Canonical) -> Canonical:
    """Removes the assistant turn of a row: outside `warm_start` the answer is the reference, not a target."""
    messages = row["messages"]
    return {**row, "messages": messages[:-1] if messages[-1]["role"] == "assistant" else messages}


def _count_rows(rows: Sequence[Canonical]) -> dict[str, Any]:
    kinds = Counter(row["kind"] for row in rows)
    return {
        "questions": len(rows),
        "images": len({i for row in rows for i in row["image_sha256"]}),
        "kinds": dict(kinds),
    }


def compute_metrics(splits: Mapping[str, Sequence[Canonical]], rejects: int) -> dict[str, Any]:
    """Returns counts per split and a content hash that does not depend on the parquet encoding."""
    content = sorted([row["id"], row["image_sha256"], row["messages"]] for rows in splits.values() for row in rows)
    counts = {split: _count_rows(rows) for split, rows in splits.items()}
    return {"splits": counts, "rejects": rejects, "content_sha256": hash_json(content)}
