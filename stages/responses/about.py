"""`about.json` next to the segments of a set describes the model and its settings, for people and for export cards.

It is not part of the keys: if two writers name one model differently, the first writer's name is kept.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.job.files import read_json, write_json
from stages.responses.key import GenerationSpec

if TYPE_CHECKING:
    from stages.vlm.checkpoint import Checkpoint

ABOUT = "about.json"


def read_model_name(checkpoint: "Checkpoint") -> tuple[str, str]:
    """Returns name and revision: those of the hub, else the name of the checkpoint's folder and the hash of its files.

    For a model at an endpoint, the name is provider and model name, and the revision is the hash of its request
    settings.
    """
    for mark in ("#", "@"):
        name, found, revision = checkpoint.identity.rpartition(mark)
        if found:
            return name, revision
    return checkpoint.weights.name, checkpoint.identity


def make_about(checkpoint: "Checkpoint", asked: GenerationSpec) -> dict[str, Any]:
    """Returns the content of about.json: name, revision and licence of the model, and all parts of the key."""
    name, revision = read_model_name(checkpoint)
    values = {**asdict(asked), "sampling": asked.sampling.model_dump(mode="json"), "banned": list(asked.banned)}
    return {
        "name": name,
        "revision": revision,
        "license": read_licence(checkpoint.weights),
        "asked_sha256": asked.hash(),
        **values,
    }


def read_licence(weights: Path) -> str | None:
    """Returns the licence on the model's card; None if there is no card or the card names none."""
    from huggingface_hub import ModelCard

    card = weights / "README.md"
    return ModelCard.load(card).data.license if card.is_file() else None


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Writes about.json into the folder of a set that does not have one."""
    if not (folder / ABOUT).exists():
        write_json(folder / ABOUT, about)


def read_about(folder: Path) -> dict[str, Any]:
    """Returns the content of about.json; empty if the file is missing (sets written before it was introduced)."""
    return read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}
