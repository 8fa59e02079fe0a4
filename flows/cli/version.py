"""`ril --version`: this code and the packages that decide what it does."""

import platform
from pathlib import Path

import typer

from flows.git import GitError, read_git_lines
from stages.page.provenance import list_versions


def describe_commit() -> str:
    """Returns the commit of this code, with `+` if files differ from it; "unknown" outside of a repository."""
    folder = Path(__file__).resolve().parents[2]
    try:
        commit = read_git_lines(folder, "rev-parse", "--short=12", "HEAD")[0]
        return commit + "+" * bool(read_git_lines(folder, "status", "--porcelain", "--untracked-files=no"))
    except (GitError, IndexError):
        return "unknown"


def print_version(asked: bool) -> None:
    """Prints the version and ends, if it is asked for."""
    if asked:
        versions = dict(list_versions())
        own = versions.pop("ril", "(not installed)")
        print(f"ril {own} (commit {describe_commit()}), {platform.platform(terse=True)}")
        print(", ".join(f"{name} {version}" for name, version in versions.items()))
        raise typer.Exit
