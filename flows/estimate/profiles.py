"""The estimate of the profiles in profiles/ that are for GPUs."""

from collections.abc import Mapping
from pathlib import Path

from flows.estimate.shapes import PUBLISHED, ModelShape
from flows.estimate.table import CARDS, Estimate, estimate_memory
from flows.estimate.text import format_engines, format_memory, format_storage
from flows.profile import read_profile
from stages.config.params import Params, validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml

# Gigabytes on the cards of each profile.
PROFILES = {"lora_1x24": 24, "lora_1x80": 80, "node_8x80": 80, "paper": 80}


def find_published_shapes(params: Params) -> Mapping[str, ModelShape]:
    """Returns the shape of each entry of `models` that has weights; those at endpoints have none here.

    Raises ParamsError for a model that is not in `PUBLISHED`.
    """
    found = {}
    for name, model in params.models.items():
        if model.endpoint is not None:
            continue
        if model.hub not in PUBLISHED:
            raise ParamsError(
                f"models.{name}.hub is {model.hub!r}, whose shape is not known here; known: {', '.join(PUBLISHED)}"
            )
        found[name] = PUBLISHED[model.hub]
    return found


def load_profile(root: Path, name: str) -> Params:
    """Returns the parameters of `root`/params.yaml with profile `name`; raises ParamsError if they are not valid."""
    values = merge_params(read_yaml(root / "params.yaml"), read_profile(root, name))
    return validate_params(values, f"params.yaml with profile {name}")


def estimate_profile(params: Params, name: str) -> Estimate:
    """Returns the memory of all stages on the card of profile `name`."""
    return estimate_memory(params, find_published_shapes(params), CARDS[PROFILES[name]])


def format_profile(root: Path, name: str) -> str:
    """Returns the tables of profile `name` as Markdown."""
    estimate = estimate_profile(load_profile(root, name), name)
    return f"{format_memory(estimate)}\n\n{format_engines(estimate)}\n{format_storage(estimate.storage)}"
