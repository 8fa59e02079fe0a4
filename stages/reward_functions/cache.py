"""Values of reward functions by the code that computed them: a resumed or repeated run calls no function again.

    <store>/rewards/<hash of the function's code and arguments>.json      {hash of the call: value}

Only what a function returned is kept, a number or None. Failures are not: a machine may have been slow.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.config.own_rewards import Reward
from stages.job.files import read_json, write_json
from stages.job.hashes import hash_file, hash_json
from stages.job.lock_files import make_native_lock

FOLDER = "rewards"


def hash_function_code(root: Path, code: str, reward: Reward) -> str:
    """Returns the hash of all that decides the values of a user's function: the watched files and the arguments."""
    path = root / code
    files = sorted(file for file in path.rglob("*") if _counts(file)) if path.is_dir() else [path]
    hashes = [[str(file.relative_to(root)), hash_file(file)] for file in files]
    return hash_json([hashes, reward.use, reward.arguments])


def _counts(file: Path) -> bool:
    """Returns whether a file is part of the code: neither a folder nor what Python and editors leave behind."""
    return file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")


def hash_call(request: Mapping[str, Any], image_sha256: tuple[str, ...]) -> str:
    """Returns the hash of what a function is given."""
    return hash_json(
        [request["question"], request["reference"], request["answer"], request["finish_reason"], image_sha256]
    )


class ValueCache:
    """The values of one function; written when `save` is called, merged with what others have written meanwhile."""

    def __init__(self, store: Path, code: str) -> None:
        """`code` is what `hash_function_code` returns."""
        self._file = store / FOLDER / f"{code[:32]}.json"
        self._values: dict[str, float | None] = read_json(self._file) if self._file.exists() else {}
        self._new: dict[str, float | None] = {}

    def __contains__(self, call: str) -> bool:
        return call in self._values

    def __getitem__(self, call: str) -> float | None:
        return self._values[call]

    def __len__(self) -> int:
        return len(self._values)

    def add(self, call: str, value: float | None) -> None:
        """Keeps the value of a call."""
        self._values[call] = self._new[call] = value

    def save(self) -> None:
        """Writes the values that were added since the last call."""
        if not self._new:
            return
        with make_native_lock(self._file.with_suffix(".lock")).acquire(timeout=60):
            known = read_json(self._file) if self._file.exists() else {}
            write_json(self._file, {**known, **self._new})
        self._new = {}
