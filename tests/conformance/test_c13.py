"""C13: one whole optimizer step gives the parameters that TRL 1.16's GRPOTrainer gives.

Same start, same questions with images, same answers of lengths 1 to 9, same rewards (8 rows a question, no scaling),
AdamW with clipping: from the answers on, all that `ril` does against all that TRL does. TRL's parameters are golden
files (c13_golden.py makes them).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conformance.c13_golden import SHAPES, golden_file, weights_hash
from tests.performance.against_trl.fixture import write_fixture
from tests.performance.against_trl.ours import Side
from tests.performance.against_trl.worker import Parts

ALLOWED = 1e-5  # the step moves parameters by up to 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("weight", SHAPES)
def test_parameters_after_one_step_are_those_of_trl(tmp_path: Path, weight: float) -> None:
    if not golden_file(weight).exists():
        pytest.skip(f"{golden_file(weight).name} is not there; make it with c13_golden.py in the environment with TRL")
    shape = SHAPES[weight]
    folder = tmp_path / "fixture"
    write_fixture(folder, shape)
    with np.load(golden_file(weight)) as golden:
        about = json.loads(str(golden["about"]))
        expected = {name: torch.from_numpy(golden[name]) for name in golden.files if name != "about"}
    assert about["weights"] == weights_hash(folder), "the start differs; make the golden files anew with c13_golden.py"
    side = Side(folder, Parts())
    assert side.prompt_ids() == about["prompts"]
    before = {name: parameter.detach().clone() for name, parameter in side.student.model.named_parameters()}
    side.step()
    after = dict(side.student.model.named_parameters())
    moved = {name for name, parameter in after.items() if not torch.equal(parameter, before[name])}
    assert moved == expected.keys()
    assert not any("visual" in name for name in moved), "the vision tower is frozen on both sides"
    assert max(float((after[name] - before[name]).abs().max()) for name in moved) > 0.9 * shape.learning_rate
    for name, wanted in expected.items():
        assert float((after[name] - wanted).abs().max()) <= ALLOWED, name
