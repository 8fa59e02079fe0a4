"""A checkpoint whose files changed is another model: whoever opens it refuses it, and reads little to know that."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.dvc.staleness import Input, compare_pinned
from flows.jobs import open_job
from stages import model as model_stage
from stages.config.params import load_params
from stages.job.failure import Failure
from stages.job.hashes import hash_file
from stages.vlm import identity
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, open_verified, write_card
from stages.vlm.identity import check_content, combine_hashes, hash_content

DECIDING = {
    "model.safetensors": b"weights",
    "model-00002-of-00002.safetensors": b"more weights",
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ messages }}",
    "preprocessor_config.json": b"{}",
}
HARMLESS = {
    "README.md": b"words",
    "LICENSE.txt": b"MIT",
    ".git/index": b"1",
    ".gitattributes": b"*.safetensors filter=lfs",
    ".cache/huggingface/download/config.json.metadata": b"2",
    ".cache/huggingface/download/model.safetensors.lock": b"",
    ".cache/huggingface/trap/config.json": b"{}",
    "a.png": b"",
    "pytorch_model.bin": b"weights that nothing here reads",
    "USE_POLICY": b"words",
}


@pytest.fixture
def pinned(tmp_path: Path) -> Path:
    """A card that points to a folder of files; the folder is `tmp_path / "ckpt"`."""
    for name, content in {**DECIDING, **HARMLESS}.items():
        file = tmp_path / "ckpt" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    card = tmp_path / "data" / "model" / "big"
    card.mkdir(parents=True)
    weights = tmp_path / "ckpt"
    write_card(card, "internvl3", "fp32", 256, {"path": str(weights), "identity": hash_content(weights)})
    return card


def rewrite_keeping_times(file: Path, content: bytes) -> None:
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(file: Path) -> bytes:
    """Other content of the same length."""
    return bytes(byte ^ 1 for byte in file.read_bytes())


CHANGES: dict[str, Callable[[Path], object]] = {
    "other content": lambda file: file.write_bytes(file.read_bytes() + b"."),
    "same length": lambda file: file.write_bytes(swap(file)),
    "same length and time": lambda file: rewrite_keeping_times(file, swap(file)),
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "another file with its name": lambda file: (
        file.with_name("new").write_bytes(b"x"),
        file.with_name("new").replace(file),
    ),
    "renamed": lambda file: file.rename(file.with_name("other.safetensors")),
}


@pytest.mark.parametrize("known", [True, False], ids=["seen before", "never seen"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", DECIDING)
def test_a_changed_file_is_refused(name: str, change: str, known: bool, pinned: Path, tmp_path: Path) -> None:
    store, file = tmp_path / "store", tmp_path / "ckpt" / name
    if known:
        assert open_verified(pinned, store).weights == tmp_path / "ckpt"
    before = hash_file(file)[:12]
    CHANGES[change](file)
    with pytest.raises(Failure) as failure:
        open_verified(pinned, store)
    said = str(failure.value)
    assert "\n" not in said
    assert "pin the new model: dvc repro -f -s model@big" in said
    if known and change not in ("gone", "renamed"):
        assert f"{file} has changed" in said
        assert f"sha256 recorded {before}, found {hash_file(file)[:12]}" in said


def test_an_additional_file_is_refused(pinned: Path, tmp_path: Path) -> None:
    open_verified(pinned, tmp_path / "store")
    (tmp_path / "ckpt" / "adapter_model.safetensors").write_bytes(b"an adapter")
    with pytest.raises(Failure, match=r"adapter_model.safetensors has changed: sha256 recorded no such file"):
        open_verified(pinned, tmp_path / "store")


def test_ril_status_names_a_pinned_folder_that_changed(pinned: Path, tmp_path: Path) -> None:
    """DVC is not told of the folder, so `ril status` looks itself."""
    store, folder = tmp_path / "store", str(tmp_path / "ckpt")
    assert compare_pinned("model@big", tmp_path, store) == []
    assert compare_pinned("model@other", tmp_path, store) == []
    (tmp_path / "ckpt" / "config.json").write_text('{"other": 1}')
    assert compare_pinned("model@big", tmp_path, store) == [Input(folder, "modified", None)]
    shutil.rmtree(folder)
    assert compare_pinned("model@big", tmp_path, store) == [Input(folder, "deleted", None)]


def test_what_decides_no_answer_may_change(pinned: Path, tmp_path: Path) -> None:
    before = open_verified(pinned, tmp_path / "store").identity
    for name in HARMLESS:
        (tmp_path / "ckpt" / name).write_bytes(b"other words")
    (tmp_path / "ckpt" / "NOTES.md").touch()
    (tmp_path / "ckpt" / "config.json").touch()
    assert open_verified(pinned, tmp_path / "store").identity == before
    assert open_verified(pinned, tmp_path / "store").identity == before


def test_files_are_read_once(pinned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def hash_and_tell(file: Path) -> str:
        read.append(file.name)
        return hash_file(file)

    monkeypatch.setattr(identity, "hash_file", hash_and_tell)
    open_verified(pinned, tmp_path / "store")
    assert sorted(read) == sorted(DECIDING)
    read.clear()
    open_verified(pinned, tmp_path / "store")
    assert not read
    (tmp_path / "ckpt" / "model.safetensors").touch()
    open_verified(pinned, tmp_path / "store")
    assert read == ["model.safetensors"]


def test_a_copy_elsewhere_is_the_same_model_and_old_places_are_forgotten(pinned: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    same = open_verified(pinned, store).identity
    shutil.copytree(tmp_path / "ckpt", tmp_path / "copy")
    check_content(tmp_path / "copy", same, store, "")
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "ckpt" / "config.json").touch()
    check_content(tmp_path / "ckpt", same, store, "")
    (record,) = (store / "checkpoints").iterdir()
    assert list(json.loads(record.read_text())["seen"]) == [str(tmp_path / "ckpt")]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"files": 3, "seen": []}', "\x00", '{"files": {}, "seen": {"x": 1}}']
)
def test_a_damaged_record_costs_time_only(content: str, pinned: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    open_verified(pinned, store)
    (record,) = (store / "checkpoints").iterdir()
    record.write_text(content)
    open_verified(pinned, store)
    record.write_text(content)
    (tmp_path / "ckpt" / "config.json").write_text('{"other": 1}')
    with pytest.raises(Failure):
        open_verified(pinned, store)


def test_a_store_that_is_not_writable_costs_time_only(pinned: Path, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    open_verified(pinned, tmp_path / "store")
    (tmp_path / "ckpt" / "config.json").write_text('{"other": 1}')
    with pytest.raises(Failure):
        open_verified(pinned, tmp_path / "store")


def test_folders_that_differ_in_what_decides_nothing_are_one_model(pinned: Path, tmp_path: Path) -> None:
    """The second is a snapshot of the hub's cache: symbolic links, and only what is downloaded for this project."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("c" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, content in DECIDING.items():
        (blobs / f"of {name}").write_bytes(content)
        (snapshot / name).symlink_to(blobs / f"of {name}")
    assert hash_content(snapshot) == hash_content(tmp_path / "ckpt") == open_checkpoint(pinned).identity
    for name in HARMLESS:
        (tmp_path / "ckpt" / name).unlink()
        assert hash_content(snapshot) == hash_content(tmp_path / "ckpt")
    for name in DECIDING:
        before = (tmp_path / "ckpt" / name).read_bytes()
        (tmp_path / "ckpt" / name).write_bytes(bytes([before[0] ^ 1]) + before[1:])
        assert hash_content(snapshot) != hash_content(tmp_path / "ckpt")
        (tmp_path / "ckpt" / name).write_bytes(before)


def test_a_folder_of_deciding_files_alone_has_the_hash_that_it_always_had(tmp_path: Path) -> None:
    """Models that were made here keep their answers."""
    for name, content in (("config.json", b"{}"), ("adapter/model.safetensors", b"weights"), ("ril.json", b"{}")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert hash_content(tmp_path) == "c185edb239f2cde282e86bc847d4951eea2826acb05a1cd26fdf763bb61169fc"


def test_a_card_of_before_counts_what_it_always_counted(pinned: Path, tmp_path: Path) -> None:
    """Its identity is over all files; where the store has the hashes, the model is opened and keeps its answers."""
    names = [*DECIDING, *HARMLESS]
    every = {name: hash_file(tmp_path / "ckpt" / name) for name in names}
    card, store = json.loads((pinned / "ril.json").read_text()), tmp_path / "store"
    old = combine_hashes(every)
    assert old != card["identity"]
    (pinned / "ril.json").write_text(json.dumps({**card, "identity": old}))
    identity.keep_content(tmp_path / "ckpt", old, store, every)
    assert open_verified(pinned, store).identity == old
    (tmp_path / "ckpt" / "README.md").write_text("other words")
    assert open_verified(pinned, store).identity == old
    (tmp_path / "ckpt" / "config.json").write_text('{"other": 1}')
    with pytest.raises(Failure, match=r"config.json has changed"):
        open_verified(pinned, store)


def test_a_damaged_snapshot_of_the_hub_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("c" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "plain").write_bytes(b"weights")
    weights = (blobs / "plain").rename(blobs / hash_file(blobs / "plain"))
    (blobs / ("d" * 40)).write_text("{}")
    (snapshot / "model.safetensors").symlink_to(weights)
    (snapshot / "config.json").symlink_to(blobs / ("d" * 40))
    monkeypatch.setattr("stages.vlm.checkpoint.find_hub_folder", lambda name, revision: snapshot)
    card = tmp_path / "data" / "model" / "big"
    card.mkdir(parents=True)
    source = {"hub": "a/b", "revision": "c" * 40, "identity": hash_content(snapshot)}
    write_card(card, "internvl3", "bf16", 256, source)
    opened = open_verified(card, tmp_path / "store")
    assert (opened.identity, opened.hub) == (source["identity"], f"a/b@{'c' * 40}")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text('{"other": 1}')
    with pytest.raises(Failure, match=r"config.json has changed: .*delete this snapshot and download it again"):
        open_verified(card, tmp_path / "store")
    found = identity.hash_files(snapshot, identity.list_content(snapshot))
    identity.check_hub_names(snapshot, found, "")  # small files have no sha256 for a name
    weights.write_bytes(b"other weights")
    with pytest.raises(Failure, match=r"model.safetensors has changed: sha256 recorded .*; remedy"):
        identity.check_hub_names(snapshot, identity.hash_files(snapshot, [snapshot / "model.safetensors"]), "remedy")


def test_a_card_of_a_hub_model_without_identity_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.vlm.checkpoint.find_hub_folder", lambda name, revision: tmp_path)
    card = tmp_path / "data" / "model" / "big"
    card.mkdir(parents=True)
    write_card(card, "internvl3", "bf16", 256, {"hub": "a/b", "revision": "c" * 40})
    with pytest.raises(Failure, match=r"has no identity; run its stage again: dvc repro -f -s model@big"):
        open_verified(card, tmp_path / "store")


def test_pinning_needs_no_second_reading(
    make_project: Callable[..., Path],
    tiny: Callable[[str], Checkpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    shutil.copytree(tiny("internvl3").folder, tmp_path / "ckpt")
    given: dict[str, Any] = {"family": "internvl3", "precision": "fp32", "context_tokens": 256, "verify": False}
    project = make_project({"models": {"internvl3": {**given, "build": None, "path": str(tmp_path / "ckpt")}}})
    job = open_job("model", "internvl3", project, load_params(project / "params.yaml"))
    model_stage.run(job)
    with monkeypatch.context() as patch:
        patch.setattr(identity, "hash_file", lambda file: pytest.fail(f"{file} was read again"))
        open_verified(job.out, job.store)
    (tmp_path / "ckpt" / "config.json").write_text("{}")
    with pytest.raises(Failure, match="has changed"):
        open_verified(job.out, job.store)
