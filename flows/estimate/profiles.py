"""The GPUs that profiles say they need."""

import re
from pathlib import Path

from flows.estimate.cards import CARDS
from flows.profile import list_profiles


def find_profile_card(root: Path, name: str) -> str | None:
    """Returns the gigabytes of each GPU that the first sentence of profile `name` names; None if it names none."""
    found = re.search(r"(\d+) GB", list_profiles(root).get(name, ""))
    return found[1] if found and found[1] in CARDS else None
