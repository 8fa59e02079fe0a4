"""Models that others made: whether they are here, whole, and loadable. Headers and small files are read, no weights."""

import importlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flows.checks.finding import TO_DOWNLOAD, Finding, make_missing
from stages.config.model import Model
from stages.config.params import Params
from stages.job.failure import Failure
from stages.job.hub import HubError, allows_downloads
from stages.job.job import Job
from stages.vlm.checkpoint import find_hub_folder
from stages.vlm.contents import READ, RefusedCheckpoint, check_loadable
from stages.vlm.promises import check_files_present
from stages.vlm.stored_tensors import read_stored_tensors

_SAMPLE = "What is 17 + 25? Réponse: 42 ≠ 43."


def check_models(params: Params, jobs: list[Job], end: float) -> Iterator[Finding]:
    """Yields what is wrong with pinned models that `jobs` need; after `end` (time.monotonic) contents are not read."""
    for name, model in params.models.items():
        stages = tuple(job.name for job in jobs if f"data/model/{name}" in job.paths or job.name == f"model@{name}")
        if stages and model.build is None and model.endpoint is None:
            yield from check_model(name, model, jobs[0].project, stages, end)


def check_model(name: str, model: Model, project: Path, stages: tuple[str, ...], end: float) -> Iterator[Finding]:
    """Yields what is wrong with one pinned model, by the checks of stage `model` that load nothing."""
    key = f"models.{name}.{'path' if model.path else 'hub'}"
    weights = find_weights(name, model, project)
    if isinstance(weights, Finding):
        yield Finding(weights.topic, weights.state, key, weights.what, weights.remedy, stages)
    elif time.monotonic() > end:
        yield Finding("model", "note", key, f"{weights} was not looked into: no time left", "ril doctor does", stages)
    else:
        for check in (check_loadable, lambda folder: check_files_present(folder, model, name), read_stored_tensors):
            if fault := _find_fault(check, weights):
                yield make_missing("model", key, fault, stages)
                return


def find_weights(name: str, model: Model, project: Path) -> Path | Finding:
    """Returns the folder of a pinned model, or why it is not here; asks no network."""
    if model.path is not None:
        folder = (project / Path(model.path).expanduser()).resolve()
        if (folder / "config.json").is_file():
            return folder
        why = "has no config.json" if folder.is_dir() else "is no folder"
        return Finding(
            "model", "missing", "", f"{folder} {why}", f"put the checkpoint there, or correct models.{name}.path"
        )
    assert model.hub is not None
    assert model.revision is not None
    if not allows_downloads():
        try:
            return find_hub_folder(model.hub, model.revision)
        except HubError as error:
            return make_missing("model", "", str(error).replace("models.<id>", f"models.{name}"))
    hub = importlib.import_module("huggingface_hub")
    try:
        found = hub.snapshot_download(
            model.hub, revision=model.revision, allow_patterns=list(READ), local_files_only=True
        )
        return Path(found)
    except (OSError, ValueError):
        return Finding("model", "note", "", f"{model.hub} at {model.revision} {TO_DOWNLOAD}")


def _find_fault(check: Callable[[Path], object], weights: Path) -> str:
    try:
        check(weights)
    except (RefusedCheckpoint, Failure, OSError) as error:
        return str(error).splitlines()[0]
    return ""


def check_tokenizer(name: str, weights: Path) -> Finding:
    """Returns whether the tokenizer of a folder encodes a sentence and gives it back."""
    key, file = f"models.{name}", weights / "tokenizer.json"
    if not file.is_file():
        return Finding("tokenizer", "note", key, f"{weights} has no tokenizer.json; the stage reads its older files")
    try:
        tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(file))
        ids = tokenizer.encode(_SAMPLE, add_special_tokens=False).ids
        back = tokenizer.decode(ids)
    except Exception as error:  # the library raises bare exceptions
        return Finding(
            "tokenizer", "missing", key, f"{file}: {' '.join(str(error).split())[:160]}", "download it again"
        )
    if back.split() != _SAMPLE.split():
        return Finding("tokenizer", "note", key, f"{len(ids)} tokens of a sentence come back as {back[:60]!r}")
    return Finding("tokenizer", "fine", key, f"{len(ids)} tokens for a sentence of {len(_SAMPLE)} characters")
