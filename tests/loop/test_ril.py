"""`ril.run` against the plain loop: rows, order, verdicts, logits, advantages, rates, weights, validation."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.loop.checks import check_judge, check_plain, check_questions, check_rows, check_validation
from tests.loop.recording import record_loop
from tests.loop.settings import SETTINGS
from tests.loop.world import make_job


@pytest.mark.parametrize("name", list(SETTINGS))
def test_the_loop_does_what_the_paper_says(name: str, make_world: Callable[[str], Path]) -> None:
    setting = SETTINGS[name]
    folder = make_world(setting.family)
    recording = record_loop(make_job("ril", folder, setting.params))
    check_questions(recording, setting.recipe)
    check_rows(recording, folder, setting.recipe)
    check_judge(recording, setting.recipe)
    check_plain(recording, folder, setting.recipe)
    check_validation(recording, folder, setting.recipe)
