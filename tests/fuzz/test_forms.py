"""What a request puts into the run of a form, with Prefect's own check switched off: a plan within the form, or one
line.
"""

from pathlib import Path
from typing import Any

import pytest

from flows.ui.forms import Form, make_forms
from flows.ui.plan import make_plan
from stages.config.yaml import ParamsError
from tests.fuzz.mutations import draw_hostile, draw_inputs, limit_time, mutate_json

SECONDS = 10.0  # 0.3 s on a quiet core: all forms are made for each
DEFAULT = 50


@pytest.mark.slow
def test_a_run_gets_a_plan_within_its_form_or_one_line(root: Path) -> None:
    forms = make_forms(root)
    refused = tried = longest = 0
    for rng in draw_inputs(DEFAULT):
        form, tried = rng.choice(forms), tried + 1
        settings = mutate_json(form.values, rng)
        if rng.random() < 0.3 and isinstance(settings, dict):
            settings[rng.choice(("runtime", "models", "teachers", "ril", "x"))] = draw_hostile(rng)
        hostile = str(draw_hostile(rng))
        target = form.target if rng.random() < 0.9 else hostile
        profile = "none" if rng.random() < 0.9 else hostile
        try:
            with limit_time(SECONDS):
                plan = make_plan(root, target, settings, profile)
        except ParamsError as error:
            refused += 1
            longest = max(longest, *map(len, str(error).splitlines()))
            continue
        assert plan.targets == (() if target == "pipeline" else (target,))
        assert not [change.key for change in plan.changes if not offers(form, change.key)]
    assert 0 < refused < tried
    assert longest < 1000


def offers(form: Form, key: str) -> bool:
    """Whether the form holds the key or a block that the key is in."""
    values: Any = form.values
    for part in key.split("."):
        if not isinstance(values, dict):
            return True
        if part not in values:
            return values is not form.values  # a free name inside a block
        values = values[part]
    return True
