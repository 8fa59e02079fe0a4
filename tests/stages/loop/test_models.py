"""What the loop trains and with which settings: the student with its reference, the discriminator as it was written."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.adversary.discriminator_model import DiscriminatorModel
from stages.config.discriminator import Discriminator
from stages.config.ril import Ril
from stages.job.job import Job
from stages.loop.models import load_adversary, load_policy
from stages.vlm.checkpoint import Checkpoint, open_checkpoint
from stages.vlm.reader import load_network, load_reader

Project = Callable[[str, Mapping[str, Any]], Job]


def open_parts(job: Job) -> tuple[Checkpoint, Any, Any]:
    """The student's checkpoint, its reader and the objective."""
    checkpoint = open_checkpoint(job.root / "data" / "warm_start")
    return checkpoint, load_reader(checkpoint), job.block(Ril).resolve(job.block(Discriminator))


@pytest.mark.parametrize("freezes", [True, False])
def test_the_reference_is_another_model_and_the_tower_is_trained_on_demand_only(
    loop_project: Project, freezes: bool
) -> None:
    job = loop_project("ril", {"ril": {"freeze_vision": freezes}})
    policy = load_policy(job, *open_parts(job))
    assert policy.reference.model is not policy.student.model
    weights = dict(policy.reference.model.state_dict())
    assert all(torch.equal(weights[name], value) for name, value in policy.student.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in policy.reference.model.parameters())
    assert policy.student.trains_vision is not freezes
    assert all(parameter.requires_grad for parameter in policy.student.text.parameters())
    assert policy.block.freeze_vision is freezes


@pytest.mark.parametrize("objective", ["ril", "adversarial"])
def test_the_discriminator_is_the_pre_trained_one_with_settings_of_its_own(
    loop_project: Project, tmp_path: Path, objective: str
) -> None:
    overlay = {"objective": objective, "inner_updates": 3, "discriminator_learning_rate": 3e-5, "learning_rate": 7e-5}
    job = loop_project("ril", {"ril": overlay, "discriminator": {"sees": "question_and_image", "pause_above": 0.9}})
    checkpoint, reader, resolved = open_parts(job)
    written = DiscriminatorModel(load_network(checkpoint, reader), seed=5, sees="question_and_image")
    with torch.no_grad():
        for parameter in written.parameters():
            parameter.add_(0.01)
    (tmp_path / "data" / "discriminator").mkdir()
    written.save(tmp_path / "data" / "discriminator")
    adversary = load_adversary(job, checkpoint, reader, resolved)
    loaded = adversary.discriminator.state_dict()
    assert loaded.keys() == written.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in written.state_dict().items())
    settings = adversary.settings
    assert (settings.inner_updates, settings.learning_rate, settings.pause_above) == (3, 3e-5, 0.9)
    assert (settings.loss, adversary.collator.together) == (
        ("bradley_terry", True) if objective == "adversarial" else ("bce", False)
    )
    assert adversary.collator.sees == "question_and_image"
