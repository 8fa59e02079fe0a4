"""A frozen model in NF4 beside adapters: which weights, what it computes, what is trained and what is exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from stages.config.lora import Lora
from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.training.trainer import Trainer
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.quantization import dequantize, is_quantized
from stages.vlm.reader import Network, Reader, load_network, load_reader
from tests.stages.vlm.test_lora import fill, make_groups, sum_log_probs, write_and_load

pytest.importorskip("bitsandbytes")

Tiny = Callable[[str], Checkpoint]
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "internvl3"]
LORA = Lora(rank=4, alpha=6.0, quantization="nf4")


def load(checkpoint: Checkpoint, precision: torch.dtype = torch.float32) -> tuple[Network, Reader]:
    """The quantized model of a checkpoint, made from weights of that precision."""
    reader = load_reader(checkpoint)
    network = load_network(checkpoint, reader)
    network.model.to(precision)
    network.quantize()
    return network, reader


def load_rounded(checkpoint: Checkpoint, quantized: Network, reader: Reader) -> Network:
    """A plain model with the weights that the quantized one computes with."""
    plain = load_network(checkpoint, reader)
    plain.model.to(quantized.head.weight.dtype)
    values = {name: dequantize(layer) for name, layer in quantized.text.named_modules() if is_quantized(layer)}
    assert len(values) == 14
    for name, value in values.items():
        plain.text.get_submodule(name.removesuffix(".base_layer")).weight.data = value  # type: ignore[union-attr]
    return plain


def list_bytes(network: Network) -> dict[str, bytes]:
    """The bytes of the model as it is stored, adapters left out."""
    named = network.model.state_dict().items()
    return {name: one.contiguous().view(torch.uint8).numpy().tobytes() for name, one in named if ".lora_" not in name}


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_of_the_language_model_have_4_bits_and_all_else_is_as_it_was(family: str, tiny: Tiny) -> None:
    checkpoint = tiny(family)
    plain = load_network(checkpoint, load_reader(checkpoint))
    network, _ = load(checkpoint)
    before = plain.model.state_dict()
    small = {name for name, layer in network.model.named_modules() if is_quantized(layer)}
    inside = next(name for name, module in network.model.named_modules() if module is network.text)
    assert len(small) == 14
    assert all(name.startswith(f"{inside}.layers.") for name in small)
    assert type(network.head) is nn.Linear
    stored = network.model.state_dict()
    for name, value in before.items():
        if name.removesuffix(".weight") not in small:
            assert torch.equal(stored[name], value), name
    values = sum(before[f"{name}.weight"].numel() for name in small)
    held = sum(one.nbytes for name, one in stored.items() if any(name.startswith(f"{part}.weight") for part in small))
    tables = len(small) * (16 * 4 + 256 * 4 + 200)  # of each layer: the 16 values of NF4, the 256 of scales, its shape
    assert values * 4 / 8 <= held <= values * 4.2 / 8 + tables
    for name in small:
        rounded, value = dequantize(network.model.get_submodule(name)), before[f"{name}.weight"]
        assert rounded.dtype == value.dtype
        assert 0.03 < float((rounded - value).norm() / value.norm()) < 0.15


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_rounded_model(family: str, precision: torch.dtype, tiny: Tiny) -> None:
    """Also after a pass without gradient, and beside another adapter."""
    checkpoint = tiny(family)
    network, reader = load(checkpoint, precision)
    groups, plain = make_groups(reader), load_rounded(checkpoint, network, reader)
    with torch.no_grad():
        assert torch.equal(sum_log_probs(network, groups), sum_log_probs(plain, groups))
    found = []
    for base in (network, plain):
        base.add_adapter("discriminator", LORA, seed=3)
        adapted = base.add_adapter("student", LORA, seed=1)
        assert torch.equal(sum_log_probs(adapted, groups), sum_log_probs(base, groups)), "it starts as the model"
        fill(adapted, seed=2)
        loss = sum_log_probs(adapted, groups)
        loss.backward()
        found.append((loss, {name: one.grad for name, one in adapted.trained.named_parameters()}))
    (ours, gradients), (theirs, others) = found
    assert torch.equal(ours, theirs)
    assert len(gradients) == 28
    for name, gradient in gradients.items():
        assert gradient is not None
        assert gradient.dtype == precision
        assert float(gradient.abs().max()) > 0
        assert torch.equal(gradient, others[name]), name  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_model_is_the_one_that_was_trained(family: str, tiny: Tiny, tmp_path: Path) -> None:
    """Merged into what the quantized layers compute with; the adapter alone belongs to the quantized model."""
    checkpoint = tiny(family)
    base, reader = load(checkpoint)
    groups, network = make_groups(reader), base.add_adapter("student", LORA, seed=1)
    state = fill(network, seed=2)
    wanted = sum_log_probs(network, groups).detach()
    loaded = write_and_load(network, reader, state, tmp_path, checkpoint)
    assert torch.allclose(sum_log_probs(loaded, groups), wanted, rtol=1e-5)

    fresh, _ = load(checkpoint)
    theirs = peft.PeftModel.from_pretrained(fresh.model, str(tmp_path / "adapter"))
    alone = Network(fresh.family, theirs.base_model.model, reader.image_token_id)
    assert torch.equal(sum_log_probs(alone, groups), wanted)
    merged = load_network(checkpoint, reader)
    onto = peft.PeftModel.from_pretrained(merged.model, str(tmp_path / "adapter"))
    unquantized = Network(merged.family, onto.base_model.model, reader.image_token_id)
    assert not torch.allclose(sum_log_probs(unquantized, groups), wanted, rtol=1e-3), "another model"


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_quantizes_the_same_layers_to_the_same_bytes(family: str, tiny: Tiny) -> None:
    """So the exported adapter can be used with `BitsAndBytesConfig`, as docs/lora.md says."""
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    checkpoint = tiny(family)
    ours = list_bytes(load(checkpoint)[0])
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["model.visual", "model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )
    theirs = AutoModelForImageTextToText.from_pretrained(
        checkpoint.weights, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    found = {name: one.contiguous().view(torch.uint8).numpy().tobytes() for name, one in theirs.state_dict().items()}
    assert found.keys() == ours.keys()
    assert [name for name in ours if found[name] != ours[name]] == []


@pytest.mark.parametrize(("precision", "zero_stage"), [(torch.float32, 0), (torch.bfloat16, 2)])
def test_training_changes_no_byte_of_the_quantized_model_and_keeps_adapters_only(
    precision: torch.dtype, zero_stage: Any, tiny: Tiny, tmp_path: Path
) -> None:
    """With activations that are computed again, and a state that is loaded into a model that was loaded anew."""
    network, reader = load(tiny("qwen2_5_vl"), precision)
    groups, before = make_groups(reader), list_bytes(network)
    schedule = Schedule(steps=4, learning_rate=1e-3)
    runtime = Runtime(zero_stage=zero_stage, gradient_checkpointing=True)

    def learn(base: Network, steps: int, kept: Path | None = None) -> tuple[list[float], dict[str, Tensor], Trainer]:
        student = base.add_adapter("student", LORA, seed=1)
        trainer, losses = Trainer(student.trained, schedule, runtime), list[float]()
        if kept:
            trainer.load_state(kept, "student")
        for _ in range(steps):
            losses.append(trainer.backward(-sum_log_probs(student, groups) / 100, last=True))
            trainer.step(1e-3)
        return losses, trainer.copy_state(), trainer

    losses, learned, _ = learn(network, 4)
    assert losses[3] < losses[2] < losses[1] < losses[0]
    renamed = {name.replace(".base_layer.", "."): one for name, one in list_bytes(network).items()}
    assert renamed == before
    first, _, trainer = learn(load(tiny("qwen2_5_vl"), precision)[0], 2)
    trainer.save_state(tmp_path, "student")
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert written < 2 * trainer.estimate_state_bytes() + 100_000
    further, resumed, _ = learn(load(tiny("qwen2_5_vl"), precision)[0], 2, tmp_path)
    assert first + further == losses
    assert all(torch.equal(one, learned[name]) for name, one in resumed.items())
