"""DVC's memory of hashes, which it loads as pickles, is where no other user can write."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flows.dvc.private_state import SharedState, use_private_state

VARIABLE = "DVC_SITE_CACHE_DIR"


@pytest.fixture(autouse=True)
def _no_other_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    monkeypatch.setenv("DVC_SYSTEM_CONFIG_DIR", str(tmp_path / "system"))
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "place").mkdir()


def read_local(root: Path) -> str:
    file = root / ".dvc" / "config.local"
    return file.read_text() if file.exists() else ""


def test_a_typed_dvc_uses_a_folder_of_this_user(tmp_path: Path) -> None:
    (tmp_path / ".dvc" / "config.local").write_text("[cache]\n    dir = /far/cache\n")
    environ: dict[str, str] = {}
    use_private_state(tmp_path, environ, tmp_path / "place")
    folder = tmp_path / "place" / f"dvc-{os.geteuid()}"
    assert environ == {VARIABLE: str(folder)}
    assert "/far/cache" in read_local(tmp_path)
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "out").write_text("out")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC_S")}
    (tmp_path / ".dvc" / "config.local").write_text(read_local(tmp_path).replace("/far/cache", str(tmp_path / "cache")))
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    subprocess.run(
        [sys.executable, "-m", "dvc", "add", "-q", "stage"], cwd=tmp_path, env=environment, check=True, timeout=90
    )
    assert list(folder.glob("repo/*/hashes/local/cache.db"))
    assert all(stat.S_IMODE(part.stat().st_mode) == 0o700 for part in (folder, folder / "repo"))


def test_what_the_user_has_chosen_stays(tmp_path: Path) -> None:
    environ = {VARIABLE: "/mine"}
    use_private_state(tmp_path, environ, tmp_path / "place")
    (tmp_path / ".dvc" / "config").write_text("[core]\n    site_cache_dir = /chosen\n")
    use_private_state(tmp_path, other := dict[str, str](), tmp_path / "place")
    assert (environ, other, read_local(tmp_path)) == ({VARIABLE: "/mine"}, {}, "")
    use_private_state(tmp_path / "place", other, tmp_path / "place")  # no project
    assert other == {}


def test_the_folder_of_another_user_in_the_configuration_is_not_used(tmp_path: Path) -> None:
    (tmp_path / ".dvc" / "config.local").write_text(f"[core]\n    site_cache_dir = {tmp_path}/place/dvc-77777\n")
    environ: dict[str, str] = {}
    use_private_state(tmp_path, environ, tmp_path / "place")
    assert environ[VARIABLE] == str(tmp_path / "place" / f"dvc-{os.geteuid()}")
    assert "77777" not in read_local(tmp_path)


def test_a_folder_that_others_could_write_to_is_emptied(tmp_path: Path) -> None:
    folder = tmp_path / "place" / f"dvc-{os.geteuid()}"
    (folder / "repo").mkdir(parents=True)
    (folder / "repo" / "pickle").touch()
    (folder / "repo").chmod(0o777)
    use_private_state(tmp_path, {}, tmp_path / "place")
    assert not list((folder / "repo").iterdir())
    assert stat.S_IMODE((folder / "repo").stat().st_mode) == 0o700


def test_a_link_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "place" / f"dvc-{os.geteuid()}").symlink_to(tmp_path)
    with pytest.raises(SharedState, match=VARIABLE):
        use_private_state(tmp_path, {}, tmp_path / "place")
