"""Paths in params.yaml: to data that DVC watches, and to checkpoints."""

import posixpath
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from stages.config.regular import SYSTEM_FOLDERS

_OF_TOOLS = (".git", ".dvc", ".ril")


def check_path(value: str) -> str:
    """Returns `value`; raises ValueError for a path that is no place of data: the root, the system's, the project."""
    if found := next((char for char in "$`" if char in value), None):
        raise ValueError(f"holds {found}, which shells and DVC read as code; rename the file")
    if value.startswith("~"):
        raise ValueError("~ is not replaced by your folder; write the whole path")
    # normpath keeps a double slash at the start
    parts = [part for part in posixpath.normpath(value).split("/") if part]
    if value.startswith("/") and (not parts or parts[0] in SYSTEM_FOLDERS):
        raise ValueError("a folder of the system, not data; name the file or folder with your data")
    if all(part in (".", "..") for part in parts):
        raise ValueError("the folder of the project or one that holds it; name the file or folder with your data")
    if parts[0] in _OF_TOOLS:
        raise ValueError(f"{parts[0]} is not data; name the file or folder with your data")
    return value


Location = Annotated[str, AfterValidator(check_path)]


def holds_project(root: Path, value: str) -> bool:
    """Returns whether the path `value` is the project's folder or one above it, links followed."""
    return root.resolve().is_relative_to(Path(posixpath.realpath(root / value)))
