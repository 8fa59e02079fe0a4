"""Stores that can't be written, found before an answer is paid for; folders that a team shares, kept shared."""

import multiprocessing
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.job.files import make_folder, write_text
from stages.responses.segments import list_segments
from stages.responses.space import UnusableStore, reserve_space
from stages.responses.store import Store, StoredAnswer

Make = Callable[..., StoredAnswer]
COLLEAGUE, TEAM = 65500, 65501  # ids that no account has
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's process needs root")


def add_answer(folder: Path, answer: StoredAnswer, umask: int) -> str:
    """Adds an answer as a member of the team; returns what was found before, or the error."""
    os.setgroups([TEAM])
    os.setgid(COLLEAGUE)
    os.setuid(COLLEAGUE)
    os.umask(umask)
    try:
        with reserve_space(folder, 1000):
            store = Store(folder, pytest.fail)
        found = len(store)
        store.append([answer])
    except UnusableStore as error:
        return str(error)
    return f"found {found}"


def run_as_colleague(folder: Path, answer: StoredAnswer, umask: int) -> str:
    """In a forked process: the interpreter's own files may be readable by root alone."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(add_answer, (folder, answer, umask))


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Path]:
    """The folder of a team as docs/sharing.md makes it, below a path that everybody may pass."""
    above = tmp_path
    while above != above.parent and above.stat().st_uid == os.geteuid():
        above.chmod(above.stat().st_mode | 0o011)
        above = above.parent
    folder = tmp_path / "ril"
    folder.mkdir()
    os.chown(folder, -1, TEAM)
    folder.chmod(0o2770)
    before = os.umask(0o022)
    yield folder
    os.umask(before)


@as_root
@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_what_is_made_in_a_shared_folder_is_shared(umask: int, team: Path, stored: Make) -> None:
    """Whatever the umask is, a member of the team reads and adds; everybody else does not."""
    os.umask(umask)
    folder = team / "responses" / "set"
    Store(folder, pytest.fail).append([stored("a", 0, "ours")])
    write_text(folder / "refused" / "a.jsonl", "")
    for path in (team / "responses", folder, folder / "refused"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o2777 == 0o2770 | (0o055 & ~umask & 0o005)
    for file in (list_segments(folder)[0].path, folder / "refused" / "a.jsonl"):
        assert stat.S_IMODE(file.stat().st_mode) & 0o660 == 0o660
        assert file.stat().st_gid == TEAM
    assert run_as_colleague(folder, stored("c", 0, "by a colleague"), 0o077) == "found 1"
    assert len(Store(folder, pytest.fail)) == 2
    assert list_segments(folder)[1].path.stat().st_uid == COLLEAGUE


@as_root
def test_a_store_of_somebody_else_is_refused_before_anything_is_paid(team: Path, stored: Make) -> None:
    team.chmod(0o755)
    Store(team / "responses" / "set", pytest.fail).append([stored("a", 0, "ours")])
    message = run_as_colleague(team / "responses" / "set", stored("c", 0, "by a colleague"), 0o022)
    for said in (
        f"{team / 'responses' / 'set'}: answers can't be written (Permission denied)",
        "belongs to root:",
        "with mode 0755",
        "MiB are free",
        f"this process is of user {COLLEAGUE}",
        "correct the permissions (docs/sharing.md, One folder for a team), or set RIL_STORE",
    ):
        assert said in message
    assert len(Store(team / "responses" / "set", pytest.fail)) == 1


def test_without_the_setgid_bit_the_umask_decides(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    before = os.umask(0o077)
    try:
        make_folder(tmp_path / "a" / "b")
        write_text(tmp_path / "a" / "b" / "file", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / "b" / "file").stat().st_mode) == 0o600


def test_a_disk_without_room_for_a_wave_is_said_before_the_wave(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        with reserve_space(disk / "responses" / "set", 2**19):
            assert list((disk / "responses" / "set").iterdir()) == []  # the space has no name: nothing to clean up
            with (
                pytest.raises(UnusableStore, match=r"No space left.* make room there \(0\.8 MiB are needed\)"),
                reserve_space(disk / "responses" / "set", 800 * 1024),
            ):
                pass
        with reserve_space(disk / "responses" / "set", 800 * 1024):
            pass
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("place", ["responses", "responses/set"])
@pytest.mark.parametrize("kind", ["file", "loop"])
def test_something_in_the_place_of_the_folder_is_named(place: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    if kind == "file":
        path.write_text("")
    else:
        path.symlink_to(path.name)
    with (
        pytest.raises(UnusableStore, match=r"move away .*, which is no folder"),
        reserve_space(tmp_path / "responses/set", 1),
    ):
        pass
