"""Questions: converts user data or the tiny world to canonical rows in four splits.

Reads    the tiny world, or the file or folder `questions.path`
Writes   data/questions/{warm_start,imitation,validation,test}/part-*.parquet, reports/questions/rejects.jsonl and, of
         kind sources, guesses.json
Run      dvc repro questions

No image is in two splits: images used for training in `warm_start` or `imitation` are never scored in `validation` or
`test`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from stages.config.plain import abbreviate, make_printable
from stages.config.questions import Questions
from stages.config.world import World
from stages.corpora.adapters import UnusableRow, read_user_rows
from stages.corpora.formats.sources import Guess, list_guesses
from stages.corpora.rows import QUESTION_SCHEMA
from stages.corpora.source import Canonical, UnusableData
from stages.corpora.spool import RowSpool
from stages.job.files import write_json, write_shards, write_text
from stages.job.hashes import hash_json_list
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
    job.out.parent.mkdir(parents=True, exist_ok=True)
    spool = RowSpool(job.out.parent)
    if questions.kind == "world":
        _write_rejects(job, [])
        draw_world_splits(job, questions, spool)
        _write_splits(job, spool, 0)
        return
    if questions.kind == "sources":
        _show_guesses(job, list_guesses(questions, job.root))
    rejects = read_rows(job, questions, spool)
    counts, shared = split_user_rows(spool, questions)
    rejects += shared
    _write_rejects(job, rejects)
    if fault := find_shortage(len(spool), counts, len(rejects), questions):
        listed = (
            f"; {count_reasons(rejects)}; all in {job.reports.relative_to(job.root) / 'rejects.jsonl'}"
            if rejects
            else ""
        )
        raise UnusableData(f"{fault}{listed}")
    _write_splits(job, spool, len(rejects))


def _show_guesses(job: Job, guesses: Mapping[str, Sequence[Guess]]) -> None:
    """Prints what was guessed of each source, one line a field, and writes it beside the rejects."""
    for name, found in guesses.items():
        for one in found:
            example = f", such as {one.example}" if one.example else ""
            job.progress.say(f"source {make_printable(name)}: {one.field}: {one.source}{example}")
    write_json(job.reports / "guesses.json", {name: [vars(one) for one in found] for name, found in guesses.items()})


def _write_rejects(job: Job, rejects: Iterable[UnusableRow]) -> None:
    lines = (json.dumps(vars(reject), ensure_ascii=False) + "\n" for reject in rejects)
    write_text(job.reports / "rejects.jsonl", "".join(lines))


def _write_splits(job: Job, spool: RowSpool, rejects: int) -> None:
    splits = job.block(Questions).splits
    with job.writing() as folder:
        for split in splits:
            write_shards(folder / split, spool.iter_split(split), QUESTION_SCHEMA)
    metrics = compute_metrics(spool, splits, rejects)
    job.write_metrics(metrics)
    job.progress.show_table("questions", [{"split": split, **found} for split, found in metrics["splits"].items()])


def draw_world_splits(job: Job, questions: Questions, spool: RowSpool) -> None:
    """Puts the splits of the tiny world into `spool`; a duplicate image is drawn again."""
    seen: set[str] = set()

    def drop_repeated(rows: Iterator[Canonical]) -> Iterator[Canonical]:
        for row in rows:
            if row["image_sha256"][0] not in seen:
                seen.add(row["image_sha256"][0])
                yield row

    from stages.tiny.world_rows import iter_world_rows  # local import: user data does not depend on it

    for split, count in questions.splits.items():
        rows = islice(drop_repeated(iter_world_rows(job.block(World), split)), count)
        for row in job.progress.track(rows, f"drawing {split}", total=count):
            spool.assign(spool.put(row), split, row["messages"])


def read_rows(job: Job, questions: Questions, spool: RowSpool) -> list[UnusableRow]:
    """Puts the usable rows of users' data into `spool`, and returns the rejects.

    An id that an earlier row has gets a number: LLaVA's own data have 250,000 rows that share ids. Rows are in an order
    that depends on their first image (or their id, without an image) and their id, not on their place in the file.
    """
    rejects: list[UnusableRow] = []
    counts: Counter[str] = Counter()
    for row in job.progress.track(read_user_rows(questions, job.root), "reading questions"):
        if isinstance(row, UnusableRow):
            rejects.append(row)
            continue
        given = name = row["id"]
        while spool.holds(name):
            counts[given] += 1
            name = f"{given}#{counts[given] + 1}"
        spool.put(row | {"id": name}, derive_seed("split", (row["image_sha256"] or [name])[0], name))
    if counts:
        job.progress.say(
            f"{counts.total():,} rows have the id of an earlier row and get a number, such as "
            f"{abbreviate(next(iter(counts)) + '#2')}"
        )
    return rejects


def split_user_rows(spool: RowSpool, questions: Questions) -> tuple[dict[str, int], list[UnusableRow]]:
    """Distributes the rows in `spool` over the splits; rows that share an image go to the same split.

    Returns the number of rows of each split, and as rejects the rows whose images are in several.
    """
    rejects: list[UnusableRow] = []
    counts: dict[str, int] = dict.fromkeys(questions.splits, 0)
    for number, row in spool.iter_rows():
        images = row["image_sha256"] or [row["id"]]
        owners = spool.find_owners(images)
        if len(owners) > 1:
            rejects.append(UnusableRow(-1, row["id"], f"its images are in several splits: {', '.join(sorted(owners))}"))
            continue
        split = owners.pop() if owners else _find_emptiest(counts, questions)
        spool.own(split, images)
        if counts[split] < questions.splits[split]:  # type: ignore[index]
            counts[split] += 1
            spool.assign(number, split, row["messages"] if split == "warm_start" else _drop_target(row["messages"]))
    return counts, rejects


def find_shortage(usable: int, counts: Mapping[str, int], rejects: int, questions: Questions) -> str | None:
    """Returns why the stage fails, with the remedy; None if the splits are full and enough rows are usable."""
    path = questions.path
    wanted = sum(questions.splits.values())
    if usable < wanted:
        return f"{path} has {usable} usable rows, questions.splits asks for {wanted}; lower the splits"
    wanted_of = {str(split): count for split, count in questions.splits.items()}
    short = [f"{split} ({count})" for split, count in counts.items() if count < wanted_of[split]]
    if short:
        return f"{path}: too few rows with unshared images for {', '.join(short)}; lower the splits"
    read = sum(counts.values()) + rejects
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


def _find_emptiest(counts: Mapping[str, int], questions: Questions) -> str:
    return min(counts, key=lambda split: counts[split] / questions.splits[split])  # type: ignore[index]


def _drop_target(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Removes the assistant turn of a row: outside `warm_start` the answer is the reference, not a target."""
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def compute_metrics(spool: RowSpool, splits: Iterable[str], rejects: int) -> dict[str, Any]:
    """Returns counts per split and a content hash that does not depend on the parquet encoding."""
    counts = {split: _count_rows(spool, split) for split in splits}
    content = ([row["id"], row["image_sha256"], row["messages"]] for row in spool.iter_by_id())
    return {"splits": counts, "rejects": rejects, "content_sha256": hash_json_list(content)}


def _count_rows(spool: RowSpool, split: str) -> dict[str, Any]:
    kinds, images = spool.count_kinds(split), spool.count_images(split)
    return {"questions": sum(kinds.values()), "images": images, "kinds": kinds}
