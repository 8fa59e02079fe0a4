"""Which split of this project the rows of a source belong to."""

import re

from stages.config.questions import Questions
from stages.config.sources import Source, Target
from stages.corpora.source import SourceRow

# What data sets call their splits: train, train2014, trainval, train_sft; val, valid, validation, dev; test, test-dev,
# testmini. `restval` of COCO is held out, as its name says.
_NAMES: tuple[tuple[str, Target], ...] = (
    ("train", "train"),
    ("test", "test"),
    ("val", "validation"),
    ("dev", "validation"),
)


def find_target(origin: SourceRow, questions: Questions) -> Target | None:
    """Returns the split that a row belongs to: what its source says, else what the data set calls it; or None."""
    if not questions.sources:
        return None
    source = questions.sources[origin.source]
    return source.into or read_split_name(origin.split or source.split or "")


def read_split_name(name: str) -> Target | None:
    """Returns what the name of a split of a data set means; None if it says nothing."""
    words = re.findall("[a-z]+", name.lower())
    starts = [target for word in words for start, target in _NAMES if word.startswith(start)]
    holds = [target for start, target in _NAMES if start in name.lower()]
    return next(iter(starts + holds), None)


def list_labels(questions: Questions) -> list[str]:
    """Returns a different name for each source, for tables and metrics."""
    labels = [_name_source(source) for source in questions.sources] or [questions.path]
    return [
        label if labels.count(label) == 1 else f"{label} ({labels[: place + 1].count(label)})"
        for place, label in enumerate(labels)
    ]


def _name_source(source: Source) -> str:
    parts = (source.path or source.hub, source.subset, source.split, source.into)
    return ":".join(part for part in parts if part)
