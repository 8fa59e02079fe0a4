"""`about.json` next to the segments of a set describes the model and its settings, for people and for export cards.

It is not part of the keys: if two writers name one model differently, the first writer's name is kept.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.config.image_limits import LimitName
from stages.job.bounded import UnusableFile, parse_json, read_bounded, replace_surrogates, show_value
from stages.job.files import write_json
from stages.responses.key import SPEC_FIELDS, GenerationSpec, hash_model_name, hash_spec

if TYPE_CHECKING:
    from stages.vlm.checkpoint import Checkpoint

ABOUT = "about.json"
MAX_BYTES = 2**22  # a list of banned tokens is the longest part

_SET_NAME = re.compile(r"[a-z0-9_]+-(?P<model>[0-9a-f]{8})-(?P<asked>[0-9a-f]{16})")  # `GenerationSpec.slug`
REMEDY = "move the file away: the next answers write it again"


def read_model_name(checkpoint: "Checkpoint") -> tuple[str, str]:
    """Returns name and revision: those of the hub, else the name of the checkpoint's folder and the hash of its files.

    For a model at an endpoint, the name is provider and model name, and the revision is the hash of its request
    settings.
    """
    name, found, revision = (checkpoint.hub or checkpoint.identity).rpartition("@" if checkpoint.hub else "#")
    return (name, revision) if found else (checkpoint.weights.name, checkpoint.identity)


def make_about(checkpoint: "Checkpoint", asked: GenerationSpec) -> dict[str, Any]:
    """Returns the content of about.json: name, revision and licence of the model, and all parts of the key."""
    name, revision = read_model_name(checkpoint)
    values = {**asdict(asked), "sampling": asked.sampling.model_dump(mode="json"), "banned": list(asked.banned)}
    values["limits"] = asked.limits.list_set()
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


class About(BaseModel):
    """The content of about.json; sets of early versions lack fields, and fields of later ones are not looked at."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    name: str | None = None
    revision: str | None = None
    license: str | list[str] | None = None
    asked_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    model: str | None = None
    family: str | None = None
    precision: str | None = None
    context_tokens: int | None = Field(None, ge=1)
    template: str | None = None
    banned: list[Annotated[int, Field(ge=0)]] | None = None
    sampling: dict[str, bool | int | float | str | None] | None = None
    draw: int | None = None
    limits: dict[LimitName, Annotated[int, Field(ge=1)]] | None = None


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes about.json into the folder of a set that does not have one."""
    if not os.path.lexists(folder / ABOUT):
        write_json(folder / ABOUT, about)


def read_about(folder: Path) -> dict[str, Any]:
    """Returns the content of about.json; empty if the file is missing (sets written before it was introduced).

    Raises UnusableFile if the file is broken, or describes another model or other settings than the set's name says.
    """
    try:
        text = read_bounded(folder / ABOUT, MAX_BYTES)
    except FileNotFoundError:
        return {}
    values = parse_json(text)
    if not isinstance(values, dict):
        raise UnusableFile(f"expected an object, found {show_value(values)}")
    if (plain := json.dumps(values, ensure_ascii=False)) != replace_surrogates(plain):
        raise UnusableFile("it has half a surrogate pair, which is not text")
    try:
        about = About.model_validate(values)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in wrong["loc"])
        raise UnusableFile(f"{show_value(key)} is {show_value(wrong['input'])} ({wrong['msg']})") from error
    _check_identity(about, folder.name)
    return {name: value for name, value in values.items() if name in About.model_fields}


def _check_identity(about: About, set_name: str) -> None:
    """Raises UnusableFile if the hashes in about.json, of its values and in the set's name are not the same."""
    asked, model, values = about.asked_sha256, about.model, about.model_dump()
    named = _SET_NAME.fullmatch(set_name)
    if named and asked and named["asked"] != asked[:16]:
        raise UnusableFile(
            f"asked_sha256 is {asked}, but the set's name ends in {named['asked']}, so it is of other answers"
        )
    if named and model and named["model"] != hash_model_name(model):
        raise UnusableFile(f"model is {show_value(model)}, of which the set's name is not, so it is of other answers")
    if asked and all(values.get(name) is not None for name in SPEC_FIELDS) and hash_spec(values) != asked:
        raise UnusableFile(
            f"asked_sha256 is {asked}, which is not the hash of the model and settings, so it is of other answers"
        )
