"""What a hub refuses, and what breaks on the way, is one line with its remedy; a download goes on where it stopped."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from stages.config.sources import Source
from stages.corpora.containers.hub import find_hub_snapshot
from stages.corpora.source import UnusableData
from stages.job.hub import HubError, HubRefusal, download_snapshot
from stages.vlm.checkpoint import find_hub_folder
from stages.vlm.contents import READ
from stages.vlm.identity import hash_content
from tests.faults.hub_server import COMMIT, STRANGER, TOKEN, Hub, serve_hub

FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 4096,  # 1 MiB
    "tokenizer.json": b'{"version": "1.0"}',
    "README.md": b"words",
    ".gitattributes": b"*.safetensors filter=lfs",
    "pytorch_model.bin": b"a pickle",
    "original/params.json": b"{}",
}
ASK = """
import sys
from stages.job import hub
from stages.vlm.checkpoint import find_hub_folder
hub.SILENCE_SECONDS = 2.0
find_hub_folder("somebody/model", sys.argv[1])
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub(Hub(FILES, (".safetensors", ".bin"))) as running:
        yield running


@pytest.fixture
def online(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub, with downloads allowed, no token, and an empty cache in `tmp_path / "cache"`."""
    use(hub.url, tmp_path / "cache", monkeypatch)
    return hub


def use(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RIL_ALLOW_DOWNLOADS", "1")
    template = "{endpoint}/{repo_id}/resolve/{revision}/{filename}"
    for name, value in (
        ("ENDPOINT", url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", f"{url}{template.removeprefix('{endpoint}')}"),
        ("HF_HUB_CACHE", str(cache)),
        ("HF_TOKEN_PATH", str(cache / "token")),
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DISABLE_PROGRESS_BARS", True),
    ):
        monkeypatch.setattr(constants, name, value)


def refuse(kind: str = "plain", revision: str = "main") -> HubError:
    with pytest.raises(HubError) as caught:
        find_hub_folder(f"somebody/{kind}", revision)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).endswith("or set models.<id>.path")
    return caught.value


REFUSED: dict[str, tuple[str, str, str | None, type[HubError], tuple[str, ...]]] = {
    "gated": ("gated", "main", None, HubRefusal, ("is gated, and no token is set", "accept its terms at", "HF_TOKEN")),
    "gated, no access": ("gated", "main", STRANGER, HubRefusal, ("is gated", "has no access", "approval")),
    "private": ("private", "main", None, HubRefusal, ("has none of that name, or it is private", "log in with")),
    "private, no access": ("private", "main", STRANGER, HubRefusal, ("hidden from the account of your token",)),
    "missing": ("missing", "main", None, HubRefusal, ("has none of that name", "correct `hub`")),
    "missing, logged in": ("missing", "main", TOKEN, HubRefusal, ("has none of that name", "correct `hub`")),
    "bad token": ("plain", "main", "hf_wrong", HubRefusal, ("does not accept your token",)),
    "revision": ("plain", "v9", None, HubRefusal, ("'somebody/plain' at 'v9'", "no such revision; correct `revision`")),
    "commit": ("plain", "d" * 40, None, HubRefusal, ("no such revision; correct `revision`",)),
    "disabled": ("disabled", "main", None, HubRefusal, ("was disabled by the hub",)),
    "forbidden": ("forbidden", "main", TOKEN, HubRefusal, ("Your country is not served",)),
    "broken": ("broken", "main", None, HubError, ("the hub answers 500", "try again later")),
    "name": ("a/b", "main", None, HubRefusal, ("no id of the hub", "correct `hub`")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_refuses_is_one_line(online: Hub, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    kind, revision, token, kind_of_error, said = REFUSED[case]
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    error = refuse(kind, revision)
    assert type(error) is kind_of_error
    assert all(part in str(error) for part in said), error


def test_who_has_access_gets_what_is_gated_or_private(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for kind in ("gated", "private"):
        assert find_hub_folder(f"somebody/{kind}", "main").name == COMMIT


def test_data_sets_are_refused_in_the_same_words(online: Hub) -> None:
    source = Source.model_construct(hub="somebody/gated", revision="main")
    with pytest.raises(UnusableData) as caught:
        find_hub_snapshot(source)
    said = str(caught.value)
    assert said.startswith("questions.sources: data set 'somebody/gated' at 'main' is gated, and no token is set")
    assert f"accept its terms at {online.url}/datasets/somebody/gated" in said
    assert said.endswith("or give its folder as `path`")


@pytest.mark.slow
def test_a_stage_and_a_command_end_with_that_line(
    online: Hub, make_project: Callable[..., Path], tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    """Exit code 2 where parameters or access must change, 1 where trying again may help."""
    source = {"build": None, "hub": "somebody/gated", "revision": "main"}
    project = make_project({"models": {"judge": source, "student": {**source, "hub": "somebody/broken"}}})
    given = {"HF_ENDPOINT": online.url, "HF_HOME": str(tmp_path / "home"), "RIL_ALLOW_DOWNLOADS": "1", "HF_TOKEN": ""}
    for arguments, code, said in (
        (("flows.run", "model", "judge"), 2, "error: model 'somebody/gated' at 'main' is gated, and no token is set: "),
        (("flows.run", "model", "student"), 1, "error: model 'somebody/broken' at 'main': the hub answers 500"),
        (("flows.cli", "data", "check", "somebody/gated"), 2, "data set 'somebody/gated' at 'main' is gated, and no"),
    ):
        running = start(project, *arguments, HF_HUB_OFFLINE="0", **given)
        _, errors = running.communicate(timeout=120)
        assert running.returncode == code, errors
        assert said in errors.splitlines()[-1]
        assert "Traceback" not in errors


def test_nothing_is_asked_while_downloads_are_off(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RIL_ALLOW_DOWNLOADS")
    error = refuse()
    assert isinstance(error, HubRefusal)
    assert "is not on this machine, and downloads are off; set RIL_ALLOW_DOWNLOADS=1 to download it" in str(error)
    monkeypatch.setenv("RIL_ALLOW_DOWNLOADS", "1")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE forbids to ask the hub; unset it" in str(refuse())
    find_hub_folder("somebody/plain", "main")
    monkeypatch.delenv("RIL_ALLOW_DOWNLOADS")
    assert find_hub_folder("somebody/plain", "main").name == COMMIT


def test_a_hub_that_is_not_there_is_one_line_and_is_not_missed_by_who_has_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_hub(Hub(FILES)) as hub:
        use(hub.url, tmp_path / "cache", monkeypatch)
        find_hub_folder("somebody/kept", "main")
    error = refuse()
    assert type(error) is HubError
    assert f"the hub at {hub.url} could not be asked (" in str(error)
    assert "ConnectError" in str(error)
    assert "check network and proxy" in str(error)
    assert find_hub_folder("somebody/kept", "main").name == COMMIT


def test_a_download_that_broke_off_goes_on(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a run where it broke, in the next run with the files that are not complete (huggingface_hub 2.4)."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits between its own attempts
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
    online.cut = 100_000
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
    assert (find_hub_folder("somebody/plain", "main") / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    ranges = [wanted for path, wanted in online.asked if path.endswith("model.safetensors")]
    assert ranges[:3] == ["", "bytes=65536-", "bytes=131072-"]
    online.cut, online.asked = 0, []
    error = refuse("second")
    assert type(error) is HubError
    assert f"the hub at {online.url} could not be asked (RemoteProtocolError: " in str(error)
    assert "run it again: files that are complete are kept" in str(error)
    assert any(path.endswith("config.json") for path, _ in online.asked)
    monkeypatch.delenv("RIL_ALLOW_DOWNLOADS")
    assert "is only in part on this machine, and downloads are off" in str(refuse("second"))
    monkeypatch.setenv("RIL_ALLOW_DOWNLOADS", "1")
    online.cut, online.asked = None, []
    folder = find_hub_folder("somebody/second", "main")
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not any(path.endswith("config.json") for path, _ in online.asked)


def test_a_full_disk_is_one_line_and_what_has_come_is_kept(
    online: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk))
        error = refuse()
        assert type(error) is HubError
        assert f"the disk is full while it is downloaded to {disk}; free space there or set HF_HOME" in str(error)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_of_somebody_else_is_one_line(online: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    assert "nothing can be written to" in str(refuse())


def copy_to(source: str, folder: Path) -> Path:
    snapshot_download(source, local_dir=folder)
    return folder


def clone(source: str, folder: Path) -> Path:
    """A clone of the repository; a server of git would send the same files."""
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


WAYS: dict[str, Callable[[str, Path], Path]] = {
    "all files": lambda name, _: Path(snapshot_download(name)),
    "what this project reads": lambda name, _: find_hub_folder(name, "main"),
    "--local-dir": copy_to,
    "git clone": clone,
    "copy without links": lambda name, folder: Path(shutil.copytree(snapshot_download(name), folder)),
}


@pytest.mark.parametrize("way", WAYS)
def test_downloads_of_one_model_have_one_identity(online: Hub, tmp_path: Path, way: str) -> None:
    wanted = tmp_path / "plain"
    wanted.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "original/params.json"):
        (wanted / name).parent.mkdir(exist_ok=True)
        (wanted / name).write_bytes(FILES[name])
    folder = WAYS[way]("somebody/plain", tmp_path / "copy")
    assert hash_content(folder) == hash_content(wanted)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[500_000] ^= 1
    file.unlink()
    file.write_bytes(content)
    assert hash_content(folder) != hash_content(wanted)


def test_only_what_is_read_is_downloaded(online: Hub) -> None:
    folder = download_snapshot("somebody/plain", revision="main", patterns=READ)
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "original/params.json"}


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """The address of a server that accepts connections and says nothing."""
    server = socket.create_server(("127.0.0.1", 0))
    held = []

    def accept() -> None:
        while True:
            try:
                held.append(server.accept()[0])
            except OSError:  # the end of the test
                return

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()
    for connection in held:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["main", "0" * 40])
def test_a_silent_hub_does_not_hold_a_stage(
    silent_hub: str, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("HF_ENDPOINT", silent_hub), ("HF_HOME", str(tmp_path)), ("RIL_ALLOW_DOWNLOADS", "1")):
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", ASK, revision], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "somebody/model' at " in done.stderr.splitlines()[-1]
    assert "could not be asked (ReadTimeout" in done.stderr.splitlines()[-1]
