"""Git, asked in one way: its output, or an error with what it said."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

_ASK_SECONDS = 600.0  # Git hashes what changed; nothing in a project's code takes longer


class GitError(RuntimeError):
    """Git is not installed, finds no repository, or refuses; the message is what it said."""


def run_git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, given: bytes = b"") -> bytes:
    """What `git ARGUMENTS` prints in `folder`, with `given` as its input and `environment` laid over this process's.

    Raises GitError when it fails or takes longer than ten minutes.
    """
    try:
        answer = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            input=given,
            capture_output=True,
            timeout=_ASK_SECONDS,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise GitError(f"git {' '.join(arguments)}: {error}") from error
    if answer.returncode:
        said = answer.stderr.decode(errors="replace")
        raise GitError(f"git {' '.join(arguments)}: {' '.join(said.split())}")
    return answer.stdout


def read_git_lines(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> list[str]:
    """The same as lines of text."""
    return run_git(folder, *arguments, environment=environment).decode(errors="replace").splitlines()
