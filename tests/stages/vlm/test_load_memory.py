"""Loading a model takes no memory of its own: weights are views of the mapped file, shared by all ranks and models."""

from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from stages.vlm.weights import load_whole

MIB = 2**20


def read_own_bytes() -> int:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def test_models_in_the_precision_of_their_file_take_no_memory(tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=64_000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = Qwen2ForCausalLM(config).bfloat16()
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    assert size > 60 * MIB
    model.save_pretrained(tmp_path)
    del model
    load_whole(Qwen2ForCausalLM, tmp_path, torch.bfloat16)  # what the first load allocates once
    before = read_own_bytes()
    held = [load_whole(Qwen2ForCausalLM, tmp_path, torch.bfloat16) for _ in range(3)]
    assert read_own_bytes() - before < 0.2 * size
    held.append(load_whole(Qwen2ForCausalLM, tmp_path, torch.float32))
    assert read_own_bytes() - before > 1.5 * size, "in another precision it does"
