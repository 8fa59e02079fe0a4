"""Questions: converts user data or the tiny world to canonical rows in four splits.

Reads    the tiny world, or the file or folder `questions.path`
Writes   data/questions/{warm_start,imitation,validation,test}/part-*.parquet, reports/questions/rejects.jsonl,
         reports/questions/near_duplicates.jsonl and, of kind sources, guesses.json
Run      dvc repro questions

No image is in two splits: images used for training in `warm_start` or `imitation` are never scored in `validation` or
`test`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from stages.config.plain import abbreviate, make_printable
from stages.config.questions import Questions
from stages.config.world import World
from stages.corpora.adapters import UnusableRow, convert_rows, read_source_rows
from stages.corpora.draw import HELD_OUT, LEARNED, Draw
from stages.corpora.formats.sources import Guess, list_guesses
from stages.corpora.reject_log import RejectLog, writing_rejects
from stages.corpora.rows import QUESTION_SCHEMA
from stages.corpora.shortage import find_shortage
from stages.corpora.source import Canonical, UnusableData
from stages.corpora.spool import Origin, RowSpool
from stages.corpora.targets import find_target, list_labels, list_targets
from stages.job.files import replacing, write_json, write_shards
from stages.job.hashes import hash_json, hash_json_list
from stages.job.job import Job
from stages.job.seeds import derive_seed

MOST_PAIRS = 1000  # lines of near_duplicates.jsonl


def run(job: Job) -> None:
    """Writes the four splits, the rejects and the metrics.

    Raises UnusableData when a split cannot be filled or too many source rows are unusable; the rejects are written
    before.
    """
    questions = job.block(Questions)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    spool = RowSpool(job.out.parent)
    rejects = job.reports / "rejects.jsonl"
    if questions.kind == "world":
        with writing_rejects(rejects):
            draw_world_splits(job, questions, spool)
        _write_splits(job, spool, {"rejects": 0})
        return
    if questions.kind == "sources":
        _show_guesses(job, list_guesses(questions, job.root))
    with writing_rejects(rejects) as log:
        ids = read_rows(job, questions, spool, log)
        draw = Draw(spool, questions, log)
        draw.place_rows()
        near = find_near_duplicates(job, questions, spool, draw)
        repeated = count_repeated_questions(job, spool)
    if fault := find_shortage(draw, log, questions):
        reasons = f"{log.count_reasons()}; {fault}; all rejects: {rejects.relative_to(job.root)}"
        raise UnusableData(reasons if len(log) else fault)
    sources = count_sources(spool, questions, log)
    found = {"rejects": len(log), "unused": sum(one["unused"] for one in sources.values())}
    _write_splits(
        job, spool, {**found, "ids": ids, "near_duplicates": near, "repeated_questions": repeated, "sources": sources}
    )
    job.progress.show_table("rows by source", [{"source": label, **counts} for label, counts in sources.items()])


def _show_guesses(job: Job, guesses: Mapping[str, Sequence[Guess]]) -> None:
    """Prints what was guessed of each source, one line a field, and writes it beside the rejects."""
    for name, found in guesses.items():
        for one in found:
            example = f", such as {one.example}" if one.example else ""
            job.progress.say(f"source {make_printable(name)}: {one.field}: {one.source}{example}")
    write_json(job.reports / "guesses.json", {name: [vars(one) for one in found] for name, found in guesses.items()})


def _write_splits(job: Job, spool: RowSpool, found: dict[str, Any]) -> None:
    """Writes rows, near-duplicates and metrics, with a content hash that does not depend on the parquet encoding."""
    splits = job.block(Questions).splits
    with job.writing() as folder:
        for split in splits:
            write_shards(folder / split, spool.iter_split(split), QUESTION_SCHEMA)
    with replacing(job.reports / "near_duplicates.jsonl") as temporary, temporary.open("w", encoding="utf-8") as lines:
        for near, name, other in islice(spool.prints.iter_near(), MOST_PAIRS):
            line: dict[str, Any] = {
                "question": name,
                "image": near.sha256,
                "split": near.split,
                "held_out_question": other,
            }
            line |= {"held_out_image": near.other, "bits": near.bits, "difference": round(near.difference, 2)}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        for same in islice(spool.iter_repeated_questions(LEARNED, HELD_OUT), MOST_PAIRS):
            line = {"question": same.id, "text": abbreviate(same.text), "split": same.split}
            lines.write(json.dumps(line | {"held_out_question": same.held_out_id}, ensure_ascii=False) + "\n")
    counts = {split: _count_rows(spool, split) for split in splits}
    content = ([row["id"], row["image_sha256"], row["messages"]] for row in spool.iter_by_id())
    job.write_metrics({"splits": counts, "content_sha256": hash_json_list(content), **found})
    job.progress.show_table("questions", [{"split": split, **count} for split, count in counts.items()])


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
        assert count != "all"  # see Questions
        rows = islice(drop_repeated(iter_world_rows(job.block(World), split)), count)
        for row in job.progress.track(rows, f"drawing {split}", total=count):
            spool.assign(spool.put(row), split)


def read_rows(job: Job, questions: Questions, spool: RowSpool, log: RejectLog) -> dict[str, int]:
    """Puts the usable rows of users' data into `spool`, and the others into `log`.

    Returns the number of rows that have the id of another row and get a number behind it (LLaVA's own data have 250,000
    of them), and of those without an id, which are named by their place.
    """
    listed, targets = questions.kind == "sources", list_targets(questions)
    repeated = missing = 0
    rows = convert_rows(enumerate(read_source_rows(questions, job.root)), questions)
    for origin, row, prints in job.progress.track(rows, "reading questions"):
        place = Origin(origin.source, find_target(origin, questions, targets), origin.file, origin.row)
        if isinstance(row, UnusableRow):
            log.add(row, origin.source)
            spool.targets.add((place.source, place.target))
            continue
        missing += not origin.named
        name = row["id"] if listed else spool.number_repeated(row["id"])
        repeated += name != row["id"]
        order = _order_row(row | {"id": name}, questions)
        spool.put(row | {"id": name}, order, place, prints)
    if listed:
        repeated = spool.rename_repeated()
    if repeated:
        job.progress.say(f"{repeated:,} rows have the id of another row and get a number behind it")
    if missing:
        job.progress.say(f"{missing:,} rows have no id and are named by their place")
    return {"repeated": repeated, "missing": missing}


def _order_row(row: Canonical, questions: Questions) -> int:
    """Returns the place of a row among all: a function of `questions.seed` and of the row, not of its place in a file.

    Rows of `sources` are told apart by their content, since an id may be made from the place in a file.
    """
    seed = [questions.seed] if questions.seed else []
    if questions.kind == "sources":
        content = hash_json([row["image_sha256"], row["messages"], row["answer"]])
        return derive_seed("row", questions.seed, content)
    return derive_seed("split", *seed, (row["image_sha256"] or [row["id"]])[0], row["id"])


def find_near_duplicates(job: Job, questions: Questions, spool: RowSpool, draw: Draw) -> dict[str, Any]:
    """Returns how many images for training are nearly images of a held-out split, and how many of each these are.

    With `questions.near_duplicates: drop`, other rows take the places of rows with such images.
    """
    drops = questions.near_duplicates == "drop"
    found = spool.prints.search(None if drops else LEARNED, HELD_OUT)
    if drops and (found or any(True for _ in spool.iter_repeated_questions(LEARNED, HELD_OUT))):
        draw.replace_near_duplicates()
    held_out = spool.prints.count_near()
    if found:
        parts = ", ".join(f"{count:,} of {split}" for split, count in held_out.items())
        action = "rows with them are not used" if drops else "questions.near_duplicates: drop leaves them out"
        job.progress.say(
            f"{found:,} images for training are nearly images of held-out splits ({parts}); {action}; "
            f"{(job.reports / 'near_duplicates.jsonl').relative_to(job.root)} has the nearest"
        )
    return {"images": found, "held_out": {split: held_out.get(split, 0) for split in HELD_OUT}}


def count_repeated_questions(job: Job, spool: RowSpool) -> dict[str, Any]:
    """Returns how many questions without an image are in a split for training and in a held-out one."""
    held_out: Counter[str] = Counter()
    first = None
    for same in spool.iter_repeated_questions(LEARNED, HELD_OUT):
        first = first or same
        held_out[same.split] += 1
    if first is not None:
        parts = ", ".join(f"{count:,} of {split}" for split, count in sorted(held_out.items()))
        job.progress.say(
            f"{held_out.total():,} questions without an image are for training and held out ({parts}), such as "
            f"{abbreviate(first.text)} ({make_printable(first.id)}, {make_printable(first.held_out_id)}); "
            "questions.near_duplicates: drop leaves them out"
        )
    return {"questions": held_out.total(), "held_out": {split: held_out[split] for split in HELD_OUT}}


def count_sources(spool: RowSpool, questions: Questions, log: RejectLog) -> dict[str, dict[str, int]]:
    """Returns by source the number of rows that were read, rejected and not needed, and of those in each split."""
    found = spool.count_sources()
    counts: dict[str, dict[str, int]] = {}
    for source, label in enumerate(list_labels(questions)):
        placed = {str(split): found.get((source, split), 0) for split in questions.splits}
        unused, rejects = found.get((source, None), 0), log.by_source[source]
        counts[label] = {
            "rows": unused + rejects + sum(placed.values()),
            "rejects": rejects,
            "unused": unused,
            **placed,
        }
    return counts


def _count_rows(spool: RowSpool, split: str) -> dict[str, Any]:
    kinds, images = spool.count_kinds(split), spool.count_images(split)
    return {"questions": sum(kinds.values()), "images": images, "kinds": kinds}
