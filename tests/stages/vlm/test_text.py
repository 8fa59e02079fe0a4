"""Chat models of any architecture as judges: loaded with their own template, refused without one."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from stages.config.model import Model
from stages.config.runtime import Runtime
from stages.config.verdict import Verdict
from stages.engines.vllm import VllmEngine
from stages.judging.exam import judge_beside_training
from stages.judging.judge import JudgeItem
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.contents import RefusedCheckpoint
from stages.vlm.promises import check_promises
from stages.vlm.reader import load_network, load_reader
from stages.vlm.stored_tensors import read_stored_tensors
from stages.vlm.trial import try_reading

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CONTEXT = 2048  # the tiny tokenizer spells the judge's prompt out
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32}
KINDS = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen3": (Qwen3ForCausalLM, Qwen3Config)}


@pytest.fixture
def make_judge(tiny: Callable[[str], Checkpoint], tmp_path: Path) -> Callable[[str], Checkpoint]:
    """`make_judge("llama")` is a small model of that architecture, with a chat template of its own."""

    def make(kind: str) -> Checkpoint:
        known = tiny("qwen2_5")
        folder = Path(shutil.copytree(known.folder, tmp_path / kind))
        (folder / "model.safetensors").unlink()
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        tokenizer = load_reader(known).chat.tokenizer
        model_class, config_class = KINDS[kind]
        torch.manual_seed(1)
        config = config_class(
            vocab_size=len(tokenizer),
            num_key_value_heads=1,
            max_position_embeddings=CONTEXT,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            **SHAPE,
        )
        model_class(config).save_pretrained(folder)
        return replace(known, folder=folder, weights=folder, family="text", identity=kind, context_tokens=CONTEXT)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_model_is_loaded_with_its_own_template(kind: str, make_judge: Callable[[str], Checkpoint]) -> None:
    made = make_judge(kind)
    reader = load_reader(made)
    prompt = reader.make_prompt([{"role": "user", "content": "1 + 1?"}])
    assert reader.chat.tokenizer.decode(prompt.ids) == "[user]1 + 1?\n[assistant]"
    network = load_network(made, reader)
    assert type(network.model).__name__ == KINDS[kind][0].__name__
    with torch.no_grad():
        logits = network.model(prompt.ids[None]).logits
    assert logits.shape == (1, len(prompt.ids), len(reader.chat.tokenizer))
    assert torch.isfinite(logits).all()


@pytest.mark.slow
def test_a_model_without_a_chat_template_is_refused_with_the_remedy(make_judge: Callable[[str], Checkpoint]) -> None:
    made = make_judge("llama")
    model = Model(family="text", path=str(made.weights), precision="fp32", context_tokens=CONTEXT)
    tensors = read_stored_tensors(made.weights)
    found = try_reading(made.weights, "text", 100)
    assert found.limits.own.list_set() == {}
    check_promises(model, "judge", found.facts, tensors)
    (made.weights / "chat_template.jinja").unlink()
    with pytest.raises(RefusedCheckpoint, match=r"no chat template; add chat_template.jinja from the model's page"):
        check_promises(model, "judge", try_reading(made.weights, "text", 100).facts, tensors)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_vllm_takes_plain_verdicts_of_a_chat_model(kind: str, make_judge: Callable[[str], Checkpoint]) -> None:
    engine = VllmEngine(make_judge(kind), Runtime())
    try:
        items = [JudgeItem(str(number), "What?", "28", f"It is {number}") for number in range(20)]
        found = judge_beside_training(items, engine, Verdict(model="judge", form="plain"))
    finally:
        engine.close()
    assert {one.explanation for one in found} <= {"Yes", "No"}
    assert all(one.verdict is not None for one in found)
