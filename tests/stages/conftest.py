"""Tiny checkpoints with random weights, of every family, as stage `model` writes them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stages.job.blocks import Build
from stages.vlm import Checkpoint, build_tiny, open_checkpoint, write_card

TEXTS = ["The digits are 3, 8 and 5: 3:3, 8:11, 5:16, so the sum is 16.", "What is the sum of the digits in the image?"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """`tiny("internvl3")` is a checkpoint of that family; its head is scaled up, so that it has opinions."""
    made: dict[str, Path] = {}

    def make(family: str) -> Checkpoint:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            context = 512 if family == "qwen2_5" else 256  # the judge reads a long prompt
            build = Build(steps=0, learning_rate=1e-3, hidden_size=64, layers=2, heads=2, vision_hidden_size=32, vision_layers=1)
            _, network = build_tiny(family, build, TEXTS, context, 1, folder)
            network.head.weight.data.mul_(40)
            network.model.save_pretrained(folder)
            write_card(folder, family, "fp32", context)
            made[family] = folder
        return open_checkpoint(made[family])

    return make
