"""Folders that `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write, opened by the library itself."""

from pathlib import Path
from typing import Any

from stages.config.plain import make_printable
from stages.corpora.source import UnusableData

_MARKS = ("dataset_dict.json", "state.json")


def is_saved(folder: Path) -> bool:
    """Returns whether `folder` is what `save_to_disk` writes."""
    return any((folder / mark).is_file() for mark in _MARKS)


def list_saved_files(folder: Path) -> dict[str | None, list[Path]]:
    """Returns the arrow files of each split, in order; the key is None for a data set without splits.

    The library memory-maps the files; rows are not read here. Raises UnusableData if it cannot open the folder.
    """
    from datasets import DatasetDict, load_from_disk  # local import: takes seconds

    try:
        opened: Any = load_from_disk(str(folder), keep_in_memory=False)
    except Exception as error:  # the library raises a dozen types for a damaged folder
        reason = make_printable(f"{type(error).__name__}: {error}")
        raise UnusableData(f"{folder}: `datasets` cannot load it ({reason}); save it again") from error
    parts = dict(opened) if isinstance(opened, DatasetDict) else {None: opened}
    found = {name: [Path(file["filename"]) for file in part.cache_files] for name, part in parts.items()}
    for file in (file for files in found.values() for file in files):
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UnusableData(f"{folder}: names the file {file.name!r} outside of it; save it again")
    return found
