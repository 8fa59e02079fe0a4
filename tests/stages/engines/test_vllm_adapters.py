"""A student with an adapter in vLLM: merged into its weights, or as an adapter that vLLM applies itself."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.config.lora import Lora
from stages.config.runtime import Runtime
from stages.engines import vllm as vllm_module
from stages.engines.vllm import VllmEngine
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import FAMILIES, load_network, load_reader
from tests.stages.engines.test_vllm import GREEDY, greedy_by_transformers, ids_of, seeing_requests, text_requests

Tiny = Callable[[str], Checkpoint]
LORA = Lora(rank=8, alpha=16.0)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., VllmEngine]]:
    """Starts an engine with further arguments of vLLM; it is closed after the test."""
    running: list[VllmEngine] = []
    make = vllm_module.make_engine_arguments

    def begin(checkpoint: Checkpoint, **further: Any) -> VllmEngine:
        monkeypatch.setattr(vllm_module, "make_engine_arguments", lambda *given: {**make(*given), **further})
        running.append(VllmEngine(checkpoint, Runtime(), sequences=16))
        return running[-1]

    yield begin
    for engine in running:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_greedy_answers_with_an_adapter_equal_those_of_transformers(
    family: str, tiny: Tiny, tmp_path: Path, start: Callable[..., VllmEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one engine: as the base, with the exported adapter, and after a push of merged weights."""
    from vllm.lora.request import LoRARequest

    checkpoint = tiny(family)
    asked = text_requests(GREEDY) if family == "qwen2_5" else seeing_requests(GREEDY)
    network = load_network(checkpoint, load_reader(checkpoint)).add_adapter("student", LORA, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for one in network.trained.parameters():
            one.copy_(torch.randn(one.shape, generator=generator) * 0.2)
    state = dict(network.trained.state_dict())
    network.save_adapter(state, tmp_path, "base")
    expected, base = greedy_by_transformers(checkpoint, asked, network.model), greedy_by_transformers(checkpoint, asked)
    assert sum(ours != theirs for ours, theirs in zip(expected, base, strict=True)) >= 3

    engine = start(checkpoint, enable_lora=True, max_lora_rank=LORA.rank)
    assert ids_of(engine, asked) == base
    add, adapter = engine._engine.add_request, LoRARequest("student", 1, str(tmp_path / "adapter"))
    with monkeypatch.context() as patch:
        patch.setattr(engine._engine, "add_request", lambda *given: add(*given, lora_request=adapter))
        assert ids_of(engine, asked) == expected

    plain = start(checkpoint)
    plain.update_weights(network.iter_weights(state))
    assert ids_of(plain, asked) == expected
