"""`ril push`: files and card in a folder or on a hub of this machine; nothing leaves it unless it is told to."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from flows.publish.bundle import collect_bundle
from flows.publish.facts import PublishError
from flows.publish.upload import upload_bundle
from stages.job.files import read_json, write_json
from stages.vlm.checkpoint import open_checkpoint, write_card
from stages.vlm.identity import hash_content
from tests.faults.hub_uploads import WRITER, UploadHub, serve_upload_hub
from tests.flows.tiny_run import copy_run

Ril = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(tiny_run: Path, ril: Ril, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which `ril` runs."""
    monkeypatch.chdir(tiny_run)
    return tiny_run


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """A hub that takes uploads; no token is set, and the project may go on-line."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serve_upload_hub() as running:
        for name, value in (
            ("ENDPOINT", running.url),
            ("HF_TOKEN_PATH", str(tmp_path / "token")),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
            ("HF_HUB_DISABLE_PROGRESS_BARS", True),
        ):
            monkeypatch.setattr(constants, name, value)
        yield running


def test_a_pushed_folder_is_the_checkpoint_with_its_card(project: Path, ril: Ril, tmp_path: Path) -> None:
    code, out, err = ril("push", str(tmp_path / "pushed"))
    assert code == 0, err
    pushed, own = tmp_path / "pushed", open_checkpoint(project / "data" / "ril" / "model")
    assert hash_content(pushed) == own.identity
    assert open_checkpoint(pushed).identity == own.identity
    assert ModelCard.load(pushed / "README.md").data.license == "apache-2.0"
    assert hash_content(own.folder) == own.identity
    assert not (own.folder / "README.md").exists()  # what DVC keeps is as it was
    assert out.splitlines()[-1] == f"written: {pushed}"
    assert all(file.name in out for file in pushed.iterdir())
    code, out, err = ril("push", str(pushed))
    assert code == 2
    assert err == f"error: {pushed} is not empty; give a new folder, or remove it first\n"


def test_a_dry_run_lists_and_writes_nothing(project: Path, ril: Ril, tmp_path: Path) -> None:
    code, out, err = ril("push", str(tmp_path / "pushed"), "--dry-run")
    assert code == 0, err
    assert "model.safetensors" in out
    assert out.splitlines()[-1].startswith("dry run: nothing was written")
    assert not (tmp_path / "pushed").exists()
    code, out, _ = ril("push", "hub:org/model", "--dry-run")
    assert code == 0
    assert out.splitlines()[-1] == "dry run: nothing was uploaded to org/model (private)"


def test_adapters_are_pushed_beside_the_merged_weights(tiny_run: Path, tmp_path: Path) -> None:
    project = copy_run(tiny_run, tmp_path / "project")
    folder = project / "data" / "ril" / "model"
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    write_json(folder / "adapter" / "adapter_config.json", {"base_model_name_or_path": "data/warm_start", "r": 4})
    write_card(folder, "qwen2_5_vl", "fp32", 256)
    (folder / "notes.log").write_text("nobody needs it")
    found = collect_bundle(open_checkpoint(folder), project)
    names = {file.name for file in found.files}
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "model.safetensors"} <= names
    assert found.left_out == ["notes.log"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("modeling.py", b"print()", "is code"),
        ("pytorch_model.bin", None, "left out"),
        ("config.json", b'{"auto_map": {"AutoModel": "x.Y"}}', "a reference to code"),
        ("tokenizer.json", b"{}", "the files are not those of its card"),
    ],
)
def test_only_safe_files_of_the_card_are_published(
    tiny_run: Path, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    project = copy_run(tiny_run, tmp_path / "project")
    folder = project / "data" / "ril" / "model"
    (folder / name).write_bytes(content if content is not None else b"a pickle")
    if content is None:
        assert collect_bundle(open_checkpoint(folder), project).left_out == [name]
        return
    with pytest.raises(PublishError, match=said):
        collect_bundle(open_checkpoint(folder), project)


def test_links_and_paths_of_this_machine_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    project = copy_run(tiny_run, tmp_path / "project")
    folder = project / "data" / "ril" / "model"
    (folder / "more.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(PublishError, match=r"more\.safetensors is a link"):
        collect_bundle(open_checkpoint(folder), project)
    (folder / "more.safetensors").unlink()
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "_name_or_path": f"{project}/data/warm_start"})
    write_card(folder, "qwen2_5_vl", "fp32", 256)
    with pytest.raises(PublishError, match=r"config\.json names the folder .*project/ of this machine"):
        collect_bundle(open_checkpoint(folder), project)


# --- the hub --------------------------------------------------------------------------------------------------------


def push_to(ril: Ril, monkeypatch: pytest.MonkeyPatch, *more: str, token: str = WRITER) -> tuple[int, str, str]:
    monkeypatch.setenv("RIL_ALLOW_DOWNLOADS", "1")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    return ril("push", "hub:org/model", "--yes", *more)


def test_nothing_is_uploaded_off_line_or_without_a_token(
    project: Path, hub: UploadHub, ril: Ril, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = ril("push", "hub:org/model", "--yes")
    assert code == 2
    assert "this project is off-line; RIL_ALLOW_DOWNLOADS=1" in err
    code, _, err = push_to(ril, monkeypatch, token="")
    assert code == 2
    assert "the hub needs a token that may write; set HF_TOKEN" in err
    monkeypatch.setenv("HF_TOKEN", WRITER)
    code, _, err = ril("push", "hub:model", "--yes")
    assert code == 2
    assert "names no owner; write hub:owner/name" in err
    assert not hub.private
    assert not hub.tokens


def test_an_upload_is_one_private_commit_of_all_files_and_the_card(
    project: Path, hub: UploadHub, ril: Ril, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = push_to(ril, monkeypatch)
    assert code == 0, err
    assert hub.private == {"org/model": True}
    folder = project / "data" / "ril" / "model"
    card = hub.files.pop("README.md").decode()
    assert hub.files == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert ModelCard(card).data.to_dict()["model-index"][0]["name"] == "model"
    assert 'folder = "org/model"' in card
    assert out.splitlines()[-1] == f"uploaded: {hub.url}/org/model/commit/{'a' * 40}"
    assert WRITER not in out + err
    assert out.index("model.safetensors") < out.index("uploaded:")


def test_large_files_that_the_hub_has_are_not_sent_twice(
    project: Path, hub: UploadHub, ril: Ril, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push_to(ril, monkeypatch)[0] == 0
    assert push_to(ril, monkeypatch)[0] == 0
    assert len(hub.sent) == 1


def test_a_public_repository_is_asked_about(
    project: Path, hub: UploadHub, ril: Ril, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.private["org/model"] = False
    code, _, err = push_to(ril, monkeypatch)
    assert code == 2
    assert "org/model is there and public; --public uploads to it all the same" in err
    assert not hub.files
    assert push_to(ril, monkeypatch, "--public")[0] == 0
    assert hub.files


def test_without_a_terminal_nothing_is_uploaded_unasked(
    project: Path, hub: UploadHub, ril: Ril, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RIL_ALLOW_DOWNLOADS", "1")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open() as empty:
        monkeypatch.setattr("sys.stdin", empty)
        code, _, err = ril("push", "hub:org/model")
    assert code == 2
    assert "--yes uploads without asking" in err
    assert not hub.tokens


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        ("org/model", "hf_wrong", "the hub does not accept the token"),
        ("readonly/model", WRITER, "the token may not write there"),
        ("broken/model", WRITER, "the hub answers 500"),
    ],
)
def test_a_refusal_is_one_line_without_the_token(
    project: Path, hub: UploadHub, monkeypatch: pytest.MonkeyPatch, name: str, token: str, said: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    bundle = collect_bundle(open_checkpoint(project / "data" / "ril" / "model"), project)
    with pytest.raises(PublishError, match=said) as caught:
        upload_bundle(bundle, "---\nlicense: mit\n---\n", name)
    assert len(str(caught.value).splitlines()) == 1
    assert token not in str(caught.value)


def test_a_hub_that_is_down_is_one_line(project: Path, hub: UploadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    bundle = collect_bundle(open_checkpoint(project / "data" / "ril" / "model"), project)
    with pytest.raises(PublishError, match="the upload broke off") as caught:
        upload_bundle(bundle, "card", "org/model")
    assert len(str(caught.value).splitlines()) == 1
