"""Which split of this project the rows of a source belong to."""

import re
from pathlib import PurePosixPath

from stages.config.questions import Questions
from stages.config.sources import Source, Target
from stages.corpora.source import SourceRow

# What data sets call their splits: train, train2014, trainval, train_sft; val, valid, validation, dev; test, test-dev,
# testmini. `restval` of COCO is held out, as its name says.
_STARTS: dict[str, Target] = {"train": "train", "test": "test", "val": "validation", "dev": "validation"}
_WORDS: dict[str, Target] = {**_STARTS, "training": "train", "valid": "validation", "validation": "validation"}


def list_targets(questions: Questions) -> list[Target | None]:
    """Returns the split that each source belongs to, None where only its rows say it, or nothing does.

    The name of a file or folder counts where the sources name different splits: train.jsonl and test.jsonl. A single
    test.jsonl may be all that there is.
    """
    names = [_read_file_name(source.path or "") for source in questions.sources]
    told = len(set(names) - {None}) > 1
    return [
        source.into or read_split_name(source.split or "") or (name if told else None)
        for source, name in zip(questions.sources, names, strict=True)
    ]


def find_target(origin: SourceRow, questions: Questions, targets: list[Target | None]) -> Target | None:
    """Returns the split that a row belongs to; `targets` are those of the sources (`list_targets`)."""
    if not questions.sources:
        return None
    if questions.sources[origin.source].into is None and (own := read_split_name(origin.split or "")):
        return own
    return targets[origin.source]


def read_split_name(name: str) -> Target | None:
    """Returns what the name of a split of a data set means; None if it says nothing."""
    for word in re.findall("[a-z]+", name.lower()):
        for start, target in _STARTS.items():
            if word.removeprefix("rest").removeprefix("mini").startswith(start):  # restval, minival; not latest
                return target
    return None


def _read_file_name(path: str) -> Target | None:
    words = re.findall("[a-z]+", PurePosixPath(path).name.split(".")[0].lower())
    return next((_WORDS[word] for word in words if word in _WORDS), None)


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
