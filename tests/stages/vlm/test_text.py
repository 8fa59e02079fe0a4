"""Text models of each type that family `text` reads: what packs compute is what transformers computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stages.config.build import Build
from stages.groups.log_probs import response_log_probs
from stages.groups.pack import Group, make_packs
from stages.tiny.builds.shapes import build_tiny
from stages.vlm import text
from stages.vlm.checkpoint import open_checkpoint, write_card
from stages.vlm.reader import load_network, load_reader
from tests.stages.conftest import TEXTS

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,  # the fourth of SmolLM3 has no rotary positions
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}


@pytest.mark.parametrize("kind", text.model_types)
def test_packs_give_the_log_probs_of_the_plain_model(kind: str, tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "layers": 1, "heads": 2, "vision_hidden_size": 32, "vision_layers": 1}
    build_tiny("text", Build(steps=0, learning_rate=1e-3, **shape), TEXTS, 512, 1, tmp_path)
    write_card(tmp_path, "text", "fp32", 512, source={"path": str(tmp_path), "identity": "none"})
    (tmp_path / "model.safetensors").touch()
    reader = load_reader(open_checkpoint(tmp_path))
    tokens = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **SHAPE, vocab_size=len(reader.chat.tokenizer), **tokens)
    torch.manual_seed(1)
    plain = AutoModelForCausalLM.from_config(config).eval()
    plain.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    network = load_network(open_checkpoint(tmp_path), reader)
    prompts = [reader.make_prompt([{"role": "user", "content": said}]) for said in ("What is the sum?", "Why?")]
    answers = [tuple(reader.chat.encode_response(said)) for said in ("16", "3:3, 8:11, so the sum is 16.")]
    groups = [Group(prompt, tuple(answers)) for prompt in prompts]
    (pack,) = make_packs(groups, 4096)
    with torch.no_grad():
        ours = response_log_probs(network, pack)
        theirs = []
        for prompt in prompts:
            for answer in answers:
                ids = torch.cat([prompt.ids, torch.tensor(answer)])
                logits = plain(ids[None]).logits[0, len(prompt.ids) - 1 : -1]
                theirs.append(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0])
    assert torch.allclose(ours, torch.cat(theirs), atol=1e-5)
    assert float(ours.std()) > 0.1
