"""How likely the engine says its tokens were: as the trainer does, before temperature and top-p."""

from collections.abc import Callable

import pytest
import torch

from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.engines.engine import Request
from stages.engines.vllm import VllmEngine
from stages.groups.log_probs import response_log_probs
from stages.groups.pack import Group, make_packs
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_network, load_reader


@pytest.mark.slow
def test_log_probs_are_the_trainers(tiny: Callable[[str], Checkpoint]) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    network = load_network(checkpoint, reader)
    messages = [{"role": "user", "content": "What is the sum?"}]
    sampling = Sampling(max_tokens=12, top_p=0.9, top_k=20)
    engine = VllmEngine(checkpoint, Runtime())
    (answers,) = (found for _, found in engine.generate([Request("q", messages, (), sampling, n=4, log_probs=True)]))
    (silent,) = (found for _, found in engine.generate([Request("q", messages, (), sampling)]))
    engine.close()
    assert silent[0].log_probs is None
    group = Group(reader.make_prompt(messages), tuple(answer.token_ids for answer in answers))
    (pack,) = make_packs([group], 4096)
    with torch.no_grad():
        ours = response_log_probs(network, pack)
    theirs = [value for answer in answers for value in answer.log_probs or ()]
    assert theirs == pytest.approx(ours.tolist(), abs=1e-3)
