"""Temporary files of a stage are in a folder of its own and go when it ends; after a kill, when the next one starts."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flows.temporary_files import ForeignFolder, keep_temporary_files

PROGRAM = """
import os, signal, sys, tempfile
from flows.temporary_files import keep_temporary_files
with keep_temporary_files():
    os.close(tempfile.mkstemp(prefix="vllm_dist_")[0])
    print(tempfile.gettempdir(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    return tmp_path


def list_left(folder: Path) -> set[str]:
    return {each.name for each in (folder / f"ril-{os.getuid()}").iterdir()} - {"sweep.lock"}


def test_files_are_below_a_private_folder_and_go_with_it(temporary: Path) -> None:
    with keep_temporary_files() as folder:
        assert Path(tempfile.mkdtemp()).parent == folder
        assert folder.is_relative_to(temporary)
        assert folder.parent.stat().st_mode & 0o777 == 0o700
        assert not Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(folder)  # a cache outlives the stage
    assert tempfile.gettempdir() == str(temporary)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert list_left(temporary) == set()


def test_what_a_killed_stage_left_is_removed_by_the_next_one_and_a_living_one_keeps_its_own(temporary: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = Path(killed.stdout.strip())
    assert [each.name[:10] for each in left.iterdir()] == ["vllm_dist_"]
    with keep_temporary_files() as outer:
        assert not left.exists()
        with keep_temporary_files():
            assert outer.exists()


def test_a_folder_that_others_can_write_to_is_refused(temporary: Path) -> None:
    (temporary / f"ril-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(ForeignFolder, match="remove it, or set TMPDIR"), keep_temporary_files():
        pass


def test_a_link_to_elsewhere_is_refused(temporary: Path) -> None:
    (temporary / "elsewhere").mkdir(mode=0o700)
    (temporary / f"ril-{os.getuid()}").symlink_to("elsewhere")
    with pytest.raises(ForeignFolder), keep_temporary_files():
        pass
