"""The formats of questions: the values of `questions.kind`."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One format."""

    title: str
    reader: str | None  # the module of stages/corpora/formats that yields the rows; None: the stage generates them


# A new format is an entry here and the module that it names, with a function `read`: see stages/corpora/source.py.
FORMATS: Mapping[str, Format] = {
    "world": Format("draws the tiny world", reader=None),
    "llava": Format("reads LLaVA JSON with an image folder", reader="llava"),
    "rows": Format("reads canonical parquet", reader="canonical"),
    "sources": Format("reads the data sets that `sources` lists, in the forms and files they have", reader="sources"),
}


def check_format(name: str) -> str:
    """Returns `name`; raises ValueError with the known formats if there is no such format."""
    if name not in FORMATS:
        raise ValueError(f"no format has this name; known: {', '.join(FORMATS)}")
    return name
