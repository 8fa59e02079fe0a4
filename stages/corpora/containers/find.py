"""The data files of a path: which they are, of which kind, and of which split."""

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.plain import abbreviate, make_printable
from stages.config.regular import explain_os_error, open_regular
from stages.config.sources import Source
from stages.corpora.containers.archives import iter_archive_records
from stages.corpora.containers.delimited import iter_delimited_records
from stages.corpora.containers.json_files import iter_json_records
from stages.corpora.containers.record import Record
from stages.corpora.containers.saved import is_saved, list_saved_files
from stages.corpora.containers.tables import count_parquet_rows, iter_arrow_records, iter_parquet_records
from stages.corpora.containers.text import find_compression, open_bytes, reading_text
from stages.corpora.source import UnusableData

_ENDINGS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "delimited",
    ".tsv": "delimited",
    ".tar": "archive",
}
_PACKED = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz", ".tgz")
# written beside data by libraries and data sets; not rows
_BESIDE = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json", "index.json")
# as the library `datasets` understands names of files and folders
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_READERS = {
    "parquet": iter_parquet_records,
    "arrow": iter_arrow_records,
    "json": iter_json_records,
    "delimited": iter_delimited_records,
    "archive": iter_archive_records,
}


@dataclass(frozen=True)
class DataFile:
    """A file with rows."""

    path: Path
    shown: str  # as the user wrote it
    kind: str
    split: str | None

    def iter_records(self) -> Iterator[Record]:
        """Yields the rows; raises UnusableData for a file that cannot be read."""
        return _READERS[self.kind](self.path, self.shown)

    def count_rows(self) -> int | None:
        """Returns the number of rows where the file says it without being read."""
        return count_parquet_rows(self.path) if self.kind == "parquet" else None


def find_data_files(path: Path, shown: str, source: Source) -> list[DataFile]:
    """Returns the files with rows of a file or folder, in order of their names, those of `source.split` only.

    Splits are those of a saved data set, of the README of a data set of the hub, or in names of files and folders if
    these name several. Raises UnusableData for a path without such files, and for a split that is not there.
    """
    if not path.is_dir():
        split = source.split  # of a file alone the name says nothing
        return [DataFile(path, shown, find_kind(path, shown), split)]
    if is_saved(path):
        parts = list_saved_files(path)
        found = [
            DataFile(file, _show(file, path, shown), "arrow", split) for split, files in parts.items() for file in files
        ]
    else:
        found = _list_folder(path, shown, source)
    if not found:
        endings = ", ".join(_ENDINGS)
        raise UnusableData(f"{shown}: no file with rows in this folder ({endings}); name the file or folder")
    return _select_split(found, source.split, shown)


def _select_split(found: list[DataFile], wanted: str | None, shown: str) -> list[DataFile]:
    if wanted is None:
        return found
    if all(file.split is None for file in found):
        return [DataFile(file.path, file.shown, file.kind, wanted) for file in found]
    same = [file for file in found if file.split in (wanted, _SPLIT_WORDS.get(wanted, wanted))]
    if not same:
        there = ", ".join(dict.fromkeys(str(file.split) for file in found))
        raise UnusableData(f"{shown}: no split {abbreviate(wanted)}; there are {make_printable(there)}")
    return same


def _list_folder(path: Path, shown: str, source: Source) -> list[DataFile]:
    files = [file for file in _walk(path) if find_kind_by_name(file) and file.name not in _BESIDE]
    tables = [file for file in files if find_kind_by_name(file) != "archive"]
    files = tables or files  # an archive beside a table holds its images
    described = _read_configs(path, source.subset, shown)
    if described:
        chosen = {
            file: split for split, patterns in described for file in files if _matches(file.relative_to(path), patterns)
        }
        files = [file for file in files if file in chosen]
        splits: dict[Path, str | None] = dict(chosen)
    else:
        if source.subset is not None:
            files = [file for file in files if source.subset in file.relative_to(path).parts[:-1]]
            if not files:
                raise UnusableData(f"{shown}: no folder {abbreviate(source.subset)}; correct `subset`")
        splits = {file: _find_split(file.relative_to(path)) for file in files}
        if len(set(splits.values())) < 2 and source.split is None:
            splits = dict.fromkeys(files)
    return [DataFile(file, _show(file, path, shown), find_kind(file, file.name), splits[file]) for file in files]


def _walk(folder: Path) -> Iterator[Path]:
    """Yields the files below `folder` in order; links to folders are not followed, as DVC does not."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif not entry.is_dir():
            yield Path(entry.path)


def _show(file: Path, folder: Path, shown: str) -> str:
    return f"{shown.rstrip('/')}/{file.relative_to(folder).as_posix()}" if file.is_relative_to(folder) else file.name


def _find_split(name: Path) -> str | None:
    """Returns the split that the name of a file, else of the nearest folder, says."""
    for part in (name.name.split(".")[0], *reversed(name.parts[:-1])):
        words = [word for word in re.split(r"[^a-z]+", part.lower()) if word in _SPLIT_WORDS]
        if words:
            return _SPLIT_WORDS[words[0]]
    return None


def _read_configs(folder: Path, subset: str | None, shown: str) -> list[tuple[str, list[str]]]:
    """Returns split and file patterns of the configuration that README.md describes; empty without description."""
    readme = folder / "README.md"
    if not readme.is_file():
        return []
    from huggingface_hub import metadata_load

    try:
        card: Any = metadata_load(readme) or {}
        configs = {str(one["config_name"]): one for one in card.get("configs") or [] if "data_files" in one}
        if subset is None and len(configs) > 1:
            default = [name for name, one in configs.items() if one.get("default") or name == "default"]
            if not default:
                raise UnusableData(f"{shown}: has several subsets; set `subset` to one of {', '.join(configs)}")
            subset = default[0]
        if subset is not None and configs and subset not in configs:
            raise UnusableData(f"{shown}: no subset {abbreviate(subset)}; there are {', '.join(configs)}")
        chosen = configs.get(subset) if subset is not None else next(iter(configs.values()), None)
        if chosen is None:
            return []
        from datasets.data_files import sanitize_patterns  # local import: takes seconds

        return [(str(split), list(given)) for split, given in sanitize_patterns(chosen["data_files"]).items()]
    except UnusableData:
        raise
    except Exception as error:  # free YAML, which the library reads in many ways
        reason = make_printable(f"{type(error).__name__}: {error}")
        raise UnusableData(f"{shown}/README.md: `configs` cannot be read ({reason}); correct or remove it") from error


def _matches(name: Path, patterns: Sequence[str]) -> bool:
    text = name.as_posix()
    return any(fnmatch.fnmatchcase(text, one) or fnmatch.fnmatchcase(text, one.replace("**/", "")) for one in patterns)


def find_kind_by_name(file: Path) -> str | None:
    """Returns the kind that the ending says; None for a file that is not known to hold rows."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] == ".tgz":
        return "archive"
    while suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return _ENDINGS.get(suffixes[-1]) if suffixes else None


def find_kind(file: Path, shown: str) -> str:
    """Returns the kind of a file from its first bytes, else from its name; raises UnusableData for no known kind."""
    with reading_text(shown):
        descriptor = open_regular(file)
        try:
            head = os.pread(descriptor, 512, 0)
        finally:
            os.close(descriptor)
        if head and find_compression(head):
            with open_bytes(file) as content:
                head = content.peek(512)[:512]
    if not head:
        raise UnusableData(f"{shown}: is empty; put a file with questions there")
    named = find_kind_by_name(file)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if head[257:262] == b"ustar":
        return "archive"
    if head.startswith(b"PK\x03\x04"):
        raise UnusableData(f"{shown}: a zip archive; unpack it, or write its rows as JSON lines or parquet")
    text = head.removeprefix(b"\xef\xbb\xbf").removeprefix(b"\xff\xfe").replace(b"\0", b"").lstrip()
    if text[:1] in (b"[", b"{") and named in (None, "json", "parquet", "arrow"):
        return "json"
    if named is None:
        raise UnusableData(
            f"{shown}: neither {', '.join(sorted(set(_ENDINGS.values()) - {'delimited'}))} nor CSV or TSV by its name; "
            "name a file with questions"
        )
    return named


def explain_missing(path: Path) -> str:
    """Returns why there is nothing at `path`."""
    try:
        path.stat()
    except OSError as error:
        return explain_os_error(error)
    return "cannot be read"
