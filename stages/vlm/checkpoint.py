"""A model on disk: a Hugging Face folder with an additional card.

The card (`ril.json`) contains what config.json does not: family, precision, context length, limits on images, location
of weights that are not in the folder, and `identity`, the hash under which the model's answers are stored. A remote
model has only a card.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.config.endpoint import Endpoint
from stages.config.image_limits import NO_LIMITS, ImageLimits, read_limits
from stages.job.failure import Failure
from stages.job.files import read_json, write_json
from stages.job.hashes import hash_json
from stages.job.hub import HubError, download_snapshot
from stages.vlm.contents import READ
from stages.vlm.identity import CARD, check_content, hash_content

Precision = Literal["fp32", "bf16"]
DAMAGED_SNAPSHOT = "delete this snapshot and download it again"


@dataclass(frozen=True)
class Checkpoint:
    """A model with the contents of its card."""

    folder: Path
    weights: Path  # folder that transformers and vLLM load
    family: str
    precision: Precision
    context_tokens: int
    identity: str  # hash of the files that decide answers, or provider, name and hash of the endpoint block
    endpoint: Endpoint | None = None  # of a remote model; `weights` then contains no weights
    limits: ImageLimits = NO_LIMITS  # on images, in place of those of its processor
    hub: str | None = None  # name and commit of a hub model: owner/name@commit


def write_card(
    folder: Path,
    family: str,
    precision: Precision,
    context_tokens: int,
    source: Mapping[str, Any] | None = None,
    limits: ImageLimits = NO_LIMITS,
) -> None:
    """Writes the card of a model.

    Without `source`, the weights are in `folder`. Otherwise it locates them: {"path", "identity"}, or {"hub",
    "revision", "identity"} with a commit as revision, or {"endpoint"}, the block of a remote model.
    """
    card: dict[str, Any] = {"family": family, "precision": precision, "context_tokens": context_tokens}
    if limits.list_set():
        card["image_limits"] = limits.list_set()
    where = dict(source) if source else {"identity": hash_content(folder)}
    write_json(folder / CARD, {**card, **where})


def open_checkpoint(folder: Path) -> Checkpoint:
    """Returns the model whose card is in `folder`.

    Raises FileNotFoundError when the card or the weights that it points to do not exist.
    """
    if not (folder / CARD).is_file():
        raise FileNotFoundError(f"{folder} has no {CARD}; the stage that writes it has not finished")
    card = read_json(folder / CARD)
    if "endpoint" in card:
        return _open_remote(folder, card)
    weights = folder
    if "path" in card:
        weights = Path(card["path"])
    elif "hub" in card:
        weights = find_hub_folder(card["hub"], card["revision"])
    if not weights.is_dir():
        raise FileNotFoundError(
            f"{folder / CARD} points to {weights}, which does not exist; restore it or rerun the stage"
        )
    return _read_checkpoint(folder, weights, card, card.get("identity", ""))


def open_verified(folder: Path, store: Path) -> Checkpoint:
    """Returns the model whose card is in `folder`, whose files are those of the card (`check_content`).

    Raises FileNotFoundError as `open_checkpoint`, Failure when files have changed. The first call for a folder reads
    all files, later ones only their lengths and times, as far as `store` can be written to.
    """
    model = open_checkpoint(folder)
    if model.endpoint is not None:
        return model
    target = _find_target(folder)
    if not model.identity:
        raise Failure(f"{folder / CARD} has no identity; run its stage again: dvc repro -f -s {target}")
    if model.hub:
        remedy = DAMAGED_SNAPSHOT
    elif model.weights == folder:
        remedy = f"restore it with: dvc checkout --force {folder}, or make it again: dvc repro -f -s {target}"
    else:
        remedy = f"put the file back, or pin the new model: dvc repro -f -s {target}"
    check_content(model.weights, model.identity, store, f"{remedy} ({folder / CARD})")
    return model


def _find_target(folder: Path) -> str:
    """Returns the DVC target that makes a checkpoint: model@x for data/model/x, ril for data/ril/model."""
    if folder.parent.name == "model":
        return f"model@{folder.name}"
    return folder.parent.name if folder.name in ("model", "last") else folder.name


def _open_remote(folder: Path, card: Mapping[str, Any]) -> Checkpoint:
    endpoint = Endpoint.model_validate(card["endpoint"])
    identity = f"endpoint:{endpoint.provider}/{endpoint.name}#{hash_json(endpoint.model_dump(mode='json'))}"
    return _read_checkpoint(folder, folder, card, identity, endpoint)


def _read_checkpoint(
    folder: Path, weights: Path, card: Mapping[str, Any], identity: str, endpoint: Endpoint | None = None
) -> Checkpoint:
    shape = (card["family"], card["precision"], card["context_tokens"])
    hub = f"{card['hub']}@{card['revision']}" if "hub" in card else None
    return Checkpoint(folder, weights, *shape, identity, endpoint, read_limits(card.get("image_limits")), hub)


def find_hub_folder(name: str, revision: str) -> Path:
    """Returns the snapshot folder of a hub model; downloads it only with RIL_ALLOW_DOWNLOADS=1.

    Raises HubError when the snapshot is not on disk and cannot be had.
    """
    try:
        return download_snapshot(name, revision=revision, patterns=READ)
    except HubError as error:
        raise type(error)(f"{error}, or set models.<id>.path") from error


def find_hub_commit(name: str, revision: str) -> str:
    """Resolves `revision` of a hub model to a commit; from disk unless RIL_ALLOW_DOWNLOADS=1.

    Raises HubError as `find_hub_folder`.
    """
    return find_hub_folder(name, revision).name  # snapshot folders are named after their commit
