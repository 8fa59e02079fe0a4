"""How an oracle leaves its answers: golden/<oracle>.npz, and golden/<oracle>.json with the versions that gave them."""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import cases


def leave(oracle: str, found: dict[str, object], packages: tuple[str, ...]) -> None:
    """Writes both files; arrays in fp64."""
    np.savez_compressed(
        cases.GOLDEN / f"{oracle}.npz", **{name: np.asarray(value, np.float64) for name, value in found.items()}
    )
    versions = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    (cases.GOLDEN / f"{oracle}.json").write_text(
        json.dumps({"versions": versions, "values": len(found)}, indent=2) + "\n"
    )
