"""The estimate of the profiles in profiles/ that are for GPUs."""

from pathlib import Path

from flows.estimate.shapes import find_published_shapes
from flows.estimate.table import CARDS, Estimate, estimate_memory
from flows.estimate.text import format_engines, format_memory
from flows.profile import read_profile
from stages.config.params import Params, validate_params
from stages.config.yaml import merge_params, read_yaml

# Gigabytes on the cards of each profile.
PROFILES = {"lora_1x80": 80, "paper": 80}


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
    return f"{format_memory(estimate)}\n\n{format_engines(estimate)}"
