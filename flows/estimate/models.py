"""The shape of each entry of `models`: from its files, from what is published, or from its build settings."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.estimate.published import PUBLISHED
from flows.estimate.shapes import ModelShape, make_tiny_shape, read_shape
from stages.config.build import Build
from stages.config.model import Model
from stages.config.params import Params
from stages.config.yaml import ParamsError
from stages.job.bounded import UnusableFile, parse_json, read_bounded
from stages.job.files import read_json
from stages.job.hub import allows_downloads
from stages.vlm.identity import CARD

_MOST_BYTES = 1 << 24  # of a config.json


@dataclass(frozen=True)
class KnownModel:
    """A model's shape, and where it is known from."""

    shape: ModelShape
    source: str


def find_models(root: Path, params: Params) -> dict[str, KnownModel]:
    """Returns the shape of each entry of `models` that has weights; those at endpoints have none here.

    Raises ParamsError, with a line for each, for models whose shape cannot be known.
    """
    found, faults = {}, []
    for name, model in params.models.items():
        if model.endpoint is None:
            try:
                found[name] = _find_model(root, name, model)
            except ParamsError as error:
                faults.append(str(error))
    if faults:
        raise ParamsError("\n".join(faults))
    return found


def _find_model(root: Path, name: str, model: Model) -> KnownModel:
    if model.build is not None:
        made = root / "data" / "model" / name
        if (config := _read_config(made)) is not None and _is_built(config, model.build):
            return _read(config, made / "config.json", name)
        return KnownModel(make_tiny_shape(model.family, model.build), "its build settings")
    if model.path is not None:
        if (config := _read_config(root / model.path)) is None:
            raise ParamsError(
                f"models.{name}.path is {model.path!r}, which has no config.json; correct the path, or put the "
                "checkpoint there"
            )
        return _read(config, root / model.path / "config.json", name)
    assert model.hub is not None
    assert model.revision is not None
    if model.hub in PUBLISHED:
        return KnownModel(PUBLISHED[model.hub], "its published config.json")
    file = _find_on_hub(model.hub, model.revision, name)
    return _read(_parse(file), file, name)


def _find_on_hub(hub: str, revision: str, name: str) -> Path:
    """Returns the model's config.json in the hub's cache; fetches it where downloads are allowed."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub, "config.json", revision=revision, local_files_only=not allows_downloads()))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        remedy = f"set RIL_ALLOW_DOWNLOADS=1 to fetch that file, or models.{name}.path"
        if allows_downloads():
            remedy = f"the hub said: {' '.join(str(error).split())[:200]}"
        raise ParamsError(
            f"models.{name}.hub is {hub!r}, whose shape is not known here and whose config.json is not in the hub's "
            f"cache ({os.environ.get('HF_HOME', '~/.cache/huggingface')}); {remedy}"
        ) from error


def _read_config(folder: Path) -> dict[str, Any] | None:
    """Returns the config.json of a checkpoint folder, or of the folder that its card points to; None without one."""
    card = folder / CARD
    if card.is_file() and "path" in (told := read_json(card)):
        folder = Path(told["path"])
    file = folder / "config.json"
    return _parse(file) if file.is_file() else None


def _parse(file: Path) -> dict[str, Any]:
    try:
        values = parse_json(read_bounded(file, _MOST_BYTES))
    except UnusableFile as error:
        raise ParamsError(f"{file}: {error}; put the model's own config.json there") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{file} holds no JSON object; put the model's own config.json there")
    return values


def _read(config: Mapping[str, Any], file: Path, name: str) -> KnownModel:
    try:
        shape = read_shape(config)
        _ = shape.weights  # values of other types than numbers end here
        return KnownModel(shape, str(file))
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ParamsError(
            f"models.{name}: {file} has no usable {error}, so its memory is not known; put the model's own config.json "
            "there"
        ) from error


def _is_built(config: Mapping[str, Any], build: Build) -> bool:
    """Whether the model that was built has the widths and layers that `build` has now."""
    text = config.get("text_config", config)
    return bool(text["hidden_size"] == build.hidden_size and text["num_hidden_layers"] == build.layers)
