"""The golden files, read once."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from stages.config.build import Build
from stages.tiny.builds.shapes import build_tiny
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card

TEXTS = ["The digits are 3, 8 and 5: 3:3, 8:11, 5:16, so the sum is 16.", "What is the sum of the digits in the image?"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """A checkpoint of a family with random weights and opinions (its head is scaled up)."""
    made: dict[str, Path] = {}

    def make(family: str) -> Checkpoint:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            build = Build(
                steps=0, learning_rate=1e-3, hidden_size=64, layers=2, heads=2, vision_hidden_size=32, vision_layers=1
            )
            _, network = build_tiny(family, build, TEXTS, 256, 1, folder)
            network.head.weight.data.mul_(40)
            network.model.save_pretrained(folder)
            write_card(folder, family, "fp32", 256)
            made[family] = folder
        return open_checkpoint(made[family])

    return make


@pytest.fixture(scope="session")
def picture() -> Callable[[int, int], bytes]:
    """`picture(width, height)` is a PNG of that size."""

    def draw(width: int, height: int) -> bytes:
        buffer = io.BytesIO()
        Image.linear_gradient("L").resize((width, height)).point(lambda v: (v + width) % 256).convert("RGB").save(
            buffer, "PNG"
        )
        return buffer.getvalue()

    return draw


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """tests/conformance/cases.py, which the oracles use too."""
    spec = importlib.util.spec_from_file_location("conformance_cases", Path(__file__).with_name("cases.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden(cases: ModuleType) -> dict[str, dict[str, Any]]:
    """What each oracle answered, by its name, and the inputs under "cases"."""
    return {name: cases.read(name) for name in ("cases", "formula", "trl", "verl", "openrlhf")}
