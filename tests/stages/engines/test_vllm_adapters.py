"""A student with an adapter in vLLM: merged into its weights, or as an adapter that vLLM applies itself."""

from collections.abc import Callable, Iterator

import pytest

from stages.config.engines import Vllm
from stages.config.lora import Lora
from stages.config.runtime import Runtime
from stages.engines.vllm import VllmEngine
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_network, load_reader
from tests.conftest import SEEING
from tests.stages.engines.test_vllm import GREEDY, greedy_by_transformers, ids_of, seeing_requests, text_requests
from tests.stages.vlm.test_lora import fill

Tiny = Callable[[str], Checkpoint]
LORA = Lora(rank=8, alpha=16.0)


@pytest.fixture
def start() -> Iterator[Callable[..., VllmEngine]]:
    """Starts an engine; it is closed after the test."""
    running: list[VllmEngine] = []

    def begin(checkpoint: Checkpoint, adapter_rank: int = 0) -> VllmEngine:
        settings = Vllm(kind="vllm", sequences=16)
        running.append(VllmEngine(checkpoint, Runtime(), settings, adapter_rank=adapter_rank))
        return running[-1]

    yield begin
    for engine in running:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("family", [*SEEING, "qwen2_5"])
def test_greedy_answers_with_an_adapter_equal_those_of_transformers(
    family: str, tiny: Tiny, start: Callable[..., VllmEngine]
) -> None:
    """Of one engine: as the base, with two adapters one after the other; of another one with merged weights."""
    checkpoint = tiny(family)
    asked = text_requests(GREEDY) if family == "qwen2_5" else seeing_requests(GREEDY)
    network = load_network(checkpoint, load_reader(checkpoint)).add_adapter("student", LORA, seed=1)
    engine, plain = start(checkpoint, LORA.rank), start(checkpoint)
    seen = [greedy_by_transformers(checkpoint, asked)]
    assert ids_of(engine, asked) == seen[0]
    for seed in (2, 3):
        state = fill(network, seed, spread=0.2)
        seen.append(greedy_by_transformers(checkpoint, asked, network.model))
        assert sum(ours != theirs for ours, theirs in zip(seen[-1], seen[-2], strict=True)) >= 3
        size = sum(one.nbytes for one in state.values())
        sent = engine.update_adapter(lambda folder, state=state: network.save_adapter(state, folder, "base"), size)
        assert ids_of(engine, asked) == seen[-1]
        merged = plain.update_weights(network.iter_weights(state))
        assert ids_of(plain, asked) == seen[-1]
        assert size < sent < merged
