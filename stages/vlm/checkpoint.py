"""A model on disk: an ordinary Hugging Face folder with a small card beside it.

The card (`ril.json`) says what config.json does not: the family, the number format to use, how long a context may be,
where the weights lie when they are not in the folder itself, and `identity`, the hash under which the model's answers
are stored. Of a model that is asked at an endpoint there is nothing but the card.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.config.endpoint import Endpoint
from stages.job.files import read_json, write_json
from stages.job.hashes import hash_file, hash_json

CARD = "ril.json"
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Checkpoint:
    """One model."""

    folder: Path
    weights: Path  # what transformers and vLLM load
    family: str
    precision: Precision
    context_tokens: int
    identity: str  # 64 hex digits of the files, or hub name and commit, or endpoint, name and hash of how it is asked
    endpoint: Endpoint | None = None  # of a model of others; then `weights` holds none


def hash_content(weights: Path) -> str:
    """sha256 over names and bytes of all files of a checkpoint folder, its card excepted."""
    files = sorted(file for file in weights.rglob("*") if file.is_file() and file.name != CARD)
    return hash_json([[str(file.relative_to(weights)), hash_file(file)] for file in files])


def write_card(
    folder: Path,
    family: str,
    precision: Precision,
    context_tokens: int,
    source: Mapping[str, Any] | None = None,
) -> None:
    """Writes the card of a model.

    Without `source` the weights are in `folder`. With it, they are elsewhere: {"path", "identity"}, or {"hub",
    "revision"} where revision is a commit, or {"endpoint"}, the block of a model of others.
    """
    card = {"family": family, "precision": precision, "context_tokens": context_tokens}
    where = dict(source) if source else {"identity": hash_content(folder)}
    write_json(folder / CARD, {**card, **where})


def open_checkpoint(folder: Path) -> Checkpoint:
    """The model whose card is in `folder`.

    Raises FileNotFoundError, naming the remedy, when there is no card or the weights it points to are gone.
    """
    if not (folder / CARD).is_file():
        raise FileNotFoundError(f"{folder} has no {CARD}; the stage that makes it has not run to its end")
    card = read_json(folder / CARD)
    if "endpoint" in card:
        return _open_remote(folder, card)
    weights, identity = folder, card.get("identity", "")
    if "path" in card:
        weights = Path(card["path"])
    elif "hub" in card:
        weights, identity = find_hub_folder(card["hub"], card["revision"]), f"{card['hub']}@{card['revision']}"
    if not weights.is_dir():
        raise FileNotFoundError(
            f"{folder / CARD} points to {weights}, which is not there; put it back or run the stage again"
        )
    return Checkpoint(folder, weights, card["family"], card["precision"], card["context_tokens"], identity)


def _open_remote(folder: Path, card: Mapping[str, Any]) -> Checkpoint:
    endpoint = Endpoint.model_validate(card["endpoint"])
    identity = f"endpoint:{endpoint.provider}/{endpoint.name}#{hash_json(endpoint.model_dump(mode='json'))}"
    return Checkpoint(folder, folder, card["family"], card["precision"], card["context_tokens"], identity, endpoint)


def find_hub_folder(name: str, revision: str) -> Path:
    """Folder of a hub model's snapshot; downloads it where downloads are allowed (RIL_ALLOW_DOWNLOADS=1), else looks on
    disk.
    """
    import os

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    offline = os.environ.get("RIL_ALLOW_DOWNLOADS") != "1"
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=offline))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"model {name} at {revision} is not on this machine; set RIL_ALLOW_DOWNLOADS=1 to fetch it from the hub, "
            "or give models.<id>.path"
        ) from error


def find_hub_commit(name: str, revision: str) -> str:
    """The commit that `revision` of a hub model means; from disk unless downloads are allowed (RIL_ALLOW_DOWNLOADS=1).

    Raises FileNotFoundError when the model can't be had.
    """
    return find_hub_folder(name, revision).name  # a snapshot's folder is called after its commit
