"""Engines that end: memory comes back, and nothing else in the process is pulled down with them."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.distributed

from stages.config.engines import Vllm
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.engines.engine import Request
from stages.engines.vllm import VllmEngine
from stages.vlm.checkpoint import Checkpoint

REQUEST = Request("q", [{"role": "user", "content": "Is 3 the sum?"}], [], Sampling(temperature=0.0, max_tokens=8))


def ids(engine: VllmEngine) -> list[tuple[int, ...]]:
    return [answer.token_ids for _, answers in engine.generate([REQUEST]) for answer in answers]


@pytest.mark.slow
def test_closing_one_engine_leaves_the_other_and_the_process_group(tiny: Callable[[str], Checkpoint]) -> None:
    first, second = (VllmEngine(tiny("qwen2_5"), Runtime(), Vllm(kind="vllm", sequences=4)) for _ in range(2))
    said = ids(second)
    model = weakref.ref(first._engine.model_executor.driver_worker.worker.model_runner.model)
    assert model() is not None
    first.close()
    del first
    gc.collect()
    assert model() is None
    assert torch.distributed.is_initialized()  # the training's group as well
    assert ids(second) == said
    second.close()
    third = VllmEngine(tiny("qwen2_5"), Runtime(), Vllm(kind="vllm", sequences=4))
    assert ids(third) == said
    third.close()
