"""Writes the plans of all profiles into docs/profiles.md: python -m docs.estimated"""

import re
import tempfile
from pathlib import Path

from flows.estimate.amounts import Range
from flows.estimate.cards import GIB, Card, find_card
from flows.estimate.models import find_models
from flows.estimate.plan import Given, plan_pipeline
from flows.estimate.profiles import find_profile_card
from flows.estimate.show import format_plan
from flows.estimate.status import add_states
from flows.profile import read_profile
from stages.config.params import validate_params
from stages.config.yaml import merge_params, read_yaml
from stages.job.files import write_text

# "tiny" is params.yaml as it is in Git.
PLANNED = ("tiny", "smoke", "lora_1x24", "lora_1x80", "node_8x80", "paper")
HOST = Card("2 cores", 24.0 * GIB, Range(8e9, 80e9), Range(5e9, 40e9), gpu=False)


def format_page_plan(root: Path, name: str) -> str:
    """Returns what `ril plan --profile NAME` prints in a new project, on the GPUs of the profile or on two cores."""
    values = read_yaml(root / "params.yaml")
    if name != "tiny":
        values = merge_params(values, read_profile(root, name))
    params = validate_params(values, name)
    size = find_profile_card(root, name)
    with tempfile.TemporaryDirectory() as folder:  # without results and store
        new = Path(folder)
        given = Given(new, new / ".ril", find_models(new, params), find_card(size) if size else None, host=HOST)
        plan = add_states(plan_pipeline(params, given), new, given.store, as_planned=False)
    command = "ril plan" if name == "tiny" else f"ril plan --profile {name}"
    return f"<!-- plan {name} -->\n```text\n$ {command}\n{format_plan(plan, details=False)}\n```\n<!-- /plan {name} -->"


def main() -> None:
    """Rewrites what stands between the marks of each profile."""
    root = Path(__file__).resolve().parents[1]
    page = root / "docs" / "profiles.md"
    text = page.read_text(encoding="utf-8")
    for name in PLANNED:
        before = re.search(rf"<!-- plan {name} -->\n.*?<!-- /plan {name} -->", text, flags=re.DOTALL)
        assert before is not None, f"docs/profiles.md has no place for {name}"
        text = text.replace(before.group(), format_page_plan(root, name))
    write_text(page, text)


if __name__ == "__main__":
    main()
