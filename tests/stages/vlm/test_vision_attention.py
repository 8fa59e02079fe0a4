"""Ways of attending in the vision tower: equal features and gradients, and how often SDPA is called."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from stages.config.build import Build
from stages.config.runtime import Runtime
from stages.tiny.builds.shapes import build_tiny
from stages.vlm import vision_attention
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card
from stages.vlm.reader import load_network, load_reader

WINDOW = 64  # patches: 112 x 112 pixels


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def windowed(tmp_path: Path) -> Checkpoint:
    """A Qwen2.5-VL whose tower has one layer with windows and one without."""
    build = Build(
        steps=0, learning_rate=1e-3, hidden_size=64, layers=1, heads=2, vision_hidden_size=32, vision_layers=2
    )
    _, network = build_tiny("qwen2_5_vl", build, ["text"], 256, 1, tmp_path)
    network.model.config.vision_config.fullatt_block_indexes = [1]
    network.model.save_pretrained(tmp_path)
    write_card(tmp_path, "qwen2_5_vl", "fp32", 256)
    return open_checkpoint(tmp_path)


def encode(checkpoint: Checkpoint, kind: Any, images: list[bytes]) -> tuple[Tensor, dict[str, Tensor]]:
    reader = load_reader(checkpoint)
    network = load_network(checkpoint, reader, Runtime(vision_attention=kind))
    features = network.encode_images(reader.make_pixels(images))
    features.sin().sum().backward()  # type: ignore[no-untyped-call]
    return features.detach(), {n: p.grad for n, p in network.model.named_parameters() if p.grad is not None}


def check_equal(checkpoint: Checkpoint, images: list[bytes]) -> None:
    (plain, gradients), (batched, others) = (encode(checkpoint, kind, images) for kind in ("sdpa", "batched"))
    assert torch.allclose(plain, batched, atol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], rtol=1e-4, atol=1e-4 * float(gradient.abs().max())), name


def test_windows_in_batches_give_what_single_windows_give(
    windowed: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of whole windows, and some with narrower ones at their edges."""
    images = [picture(224, 224), picture(224, 168), picture(224, 224), picture(196, 84)]
    calls, own = [], vision_attention.scaled_dot_product_attention

    def record(query: Tensor, *rest: Tensor, **options: Any) -> Tensor:
        calls.append(tuple(query.shape))
        attended: Tensor = own(query, *rest, **options)
        return attended

    monkeypatch.setattr(vision_attention, "scaled_dot_product_attention", record)
    check_equal(windowed, images)
    lengths = [shape[2] for shape in calls if shape[2] <= WINDOW]
    assert len(lengths) == len(set(lengths)), "windows of one length are attended to in one call"
    assert max(shape[0] for shape in calls if shape[2] == WINDOW) >= 8


def test_both_families_take_the_setting(tiny: Callable[[str], Checkpoint], family: str) -> None:
    check_equal(tiny(family), [picture(84, 84), picture(56, 84)])


def test_a_package_that_is_missing_is_named(tiny: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_attention, "find_spec", lambda name: None)
    checkpoint = tiny("qwen2_5_vl")
    with pytest.raises(ValueError, match=r"runtime\.vision_attention is flash_attention_2, .* set it to batched"):
        load_network(checkpoint, load_reader(checkpoint), Runtime(vision_attention="flash_attention_2"))


@pytest.mark.parametrize(("cuda", "name"), [(False, "sdpa"), (True, vision_attention.BATCHED)])
def test_auto_batches_on_gpus(
    tiny: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch, cuda: bool, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    checkpoint = tiny("qwen2_5_vl")
    network = load_network(checkpoint, load_reader(checkpoint))
    (tower,) = network.family.get_vision_modules(network.model)
    assert tower.config._attn_implementation == name  # type: ignore[union-attr]
