"""Lock files: one holder at a time, whose words others can read, and none once its process has died."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import Timeout

from flows.dvc.locks import StudyRunning, hold_study_lock
from stages.job.lock_files import hold_lock, read_holder

HOLDER = """
import sys, time
from pathlib import Path
from stages.job.lock_files import hold_lock
with hold_lock(Path(sys.argv[1]), "another process"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_has_one_holder_until_that_dies(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "new" / "lock"
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for _ in range(2):  # an attempt that fails leaves the holder's words as they are
            with pytest.raises(Timeout):
                hold_lock(path, "me")
            assert read_holder(path) == "another process"
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait(30)
    assert read_holder(path) is None
    with hold_lock(path, "me"):
        assert read_holder(path) == "me", "the longer words of the one before are gone"
    assert read_holder(path) is None


def test_asking_for_the_holder_makes_no_file(tmp_path: Path) -> None:
    assert read_holder(tmp_path / "lock") is None
    assert not list(tmp_path.iterdir())


def test_a_second_study_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    second = hold_study_lock(tmp_path, "second")
    with (
        hold_study_lock(tmp_path, "first"),
        pytest.raises(StudyRunning, match=r"^study first \(process \d+\) runs in this"),
    ):
        second.__enter__()
    with hold_study_lock(tmp_path, "second"):
        pass


@pytest.mark.parametrize(
    ("call", "home"),
    [("fcntl", None), ("filelock", "stages/job/lock_files.py"), ("prctl", "stages/engines/supervisor.py")],
)
def test_one_module_speaks_to_the_kernel(root: Path, call: str, home: str | None) -> None:
    """`fcntl` is nobody's: locks are the library's. What catches its Timeout is no second idiom."""
    calls = {"filelock": "FileLock(", "fcntl": "import fcntl", "prctl": ".prctl("}
    found = [
        str(path.relative_to(root))
        for part in ("flows", "stages", "studies")
        for path in sorted((root / part).rglob("*.py"))
        if calls[call] in path.read_text(encoding="utf-8")
    ]
    assert found == ([home] if home else [])
