"""Inputs that DVC cannot hash are named before it meets them."""

import os
import socket
from pathlib import Path

import pytest

from flows.lockfile import walk_files
from flows.watched_files import Unwatchable, refuse_unwatchable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images/inner").mkdir(parents=True)
    (tmp_path / "images/inner/a.png").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")
    (tmp_path / "images/link.png").symlink_to("../b.png")
    (tmp_path / "images/above").symlink_to("..")  # a loop, if it were followed
    return tmp_path / "images"


def test_files_and_links_to_files_are_watched_and_links_to_folders_are_not(folder: Path) -> None:
    refuse_unwatchable([folder, folder / "link.png"])
    assert sorted(file.name for file in walk_files(folder, ())) == ["a.png", "link.png"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pipe", "a named pipe, not a file"),
        ("socket", "a socket, not a file"),
        ("device", "a device, not a file"),
        ("dangling", "No such file or directory"),
        ("loop", "Too many levels of symbolic links"),
        ("sparse", "a file of 1,099,511,627,776 bytes, nearly all holes"),
    ],
)
def test_what_dvc_cannot_hash_is_named(folder: Path, kind: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "inner" / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(folder / "inner")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(kind)
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    else:
        path.symlink_to({"device": "/dev/zero", "dangling": "nowhere", "loop": kind}[kind])
    for place in (folder, path):
        with pytest.raises(Unwatchable, match=f"inner/{kind}: {reason}; DVC cannot watch it: remove it"):
            refuse_unwatchable([place])
