"""Why the questions that were found are not enough, with the remedy."""

import math

from stages.config.questions import Questions
from stages.config.splits import Split
from stages.corpora.draw import HELD_OUT, Draw
from stages.corpora.reject_log import RejectLog
from stages.corpora.targets import list_labels


def find_shortage(draw: Draw, log: RejectLog, questions: Questions) -> str | None:
    """Returns why the stage fails, with the remedy; None if the splits are full and enough rows are usable."""
    name = "questions.sources" if questions.sources else questions.path
    numbers = [count for count in questions.splits.values() if count != "all"]
    usable = len(draw.spool)
    short = [fault for split in questions.splits for fault in _list_lacks(draw, split, questions)]
    if usable < sum(numbers) and {target for _, target in draw.spool.targets} <= {None}:
        return f"{name} has {usable} usable rows, questions.splits asks for {sum(numbers)}; lower the splits"
    if short:
        return f"{name}: {', '.join(short)}; lower the splits{_name_remedy(draw, questions)}"
    read = usable + len(log) - draw.rejected
    unusable = len(log) - draw.dropped
    if unusable > questions.max_reject_share * read:
        limit = questions.max_reject_share
        return f"{unusable} of {read} rows of {name} are unusable, more than questions.max_reject_share ({limit})"
    return None


def _list_lacks(draw: Draw, split: Split, questions: Questions) -> list[str]:
    lacks = []
    for source, wanted in draw.plan.wanted[split].items():
        placed = draw.count(split, source)
        least = 1 if wanted == math.inf else int(wanted)
        if placed < least:
            of = "" if source is None else f" of {list_labels(questions)[source]}, as its weight asks"
            lacks.append(f"{split} has {placed:,} of {least:,} rows{of}")
    return lacks


def _name_remedy(draw: Draw, questions: Questions) -> str:
    """Returns what else helps where rows belong to splits: to say which rows are for training."""
    targets = {target for _, target in draw.spool.targets}
    if targets <= set(HELD_OUT):
        return f"; all rows belong to {' and '.join(sorted(map(str, targets)))}: give rows for training (into: train)"
    return ", or write all for a split that shall have all rows of its own" if targets - {None} else ""
