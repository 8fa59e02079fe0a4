"""`about.json` beside the segments of a set: who was asked and how, in words; for people and for the card of an export.

Keys are not made of it: of two writers that call one model by two names, the first names it.
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
    """Name and revision: those of the hub, else the name of the checkpoint's folder and the hash of its files.

    A model that is asked at an endpoint is its provider and name, with the hash of how it is asked.
    """
    for mark in ("#", "@"):
        name, found, revision = checkpoint.identity.rpartition(mark)
        if found:
            return name, revision
    return checkpoint.weights.name, checkpoint.identity


def make_about(checkpoint: "Checkpoint", asked: GenerationSpec) -> dict[str, Any]:
    """What about.json says: name, revision and licence of the model, and all that the key is made of."""
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
    """The licence that the model's own card names, None where it has no card or the card names none."""
    from huggingface_hub import ModelCard

    card = weights / "README.md"
    return ModelCard.load(card).data.license if card.is_file() else None


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Writes about.json into the folder of a set that has none."""
    if not (folder / ABOUT).exists():
        write_json(folder / ABOUT, about)


def read_about(folder: Path) -> dict[str, Any]:
    """What about.json says; empty where there is none (answers stored before it was written)."""
    return read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}
