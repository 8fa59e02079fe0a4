"""The engine's log-probs are those of sampling: the trainer's importance weights are 1 at any temperature."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.config.engines import VllmServer
from stages.config.objective import Correction
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.engines.engine import Answer, Request, StartOptions
from stages.engines.server_replies import UNKNOWN, read_log_probs
from stages.engines.vllm import VllmEngine
from stages.engines.vllm_server import VllmServerEngine
from stages.groups.log_probs import response_log_probs
from stages.groups.pack import Group, make_packs
from stages.policy.loss import rollout_weights
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_network, load_reader

MESSAGES = [{"role": "user", "content": "What is the sum?"}]
Tiny = Callable[[str], Checkpoint]


@pytest.fixture(scope="module", params=["in process", "server"])
def engine(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The student's engine as stage `ril` starts it with `ril.rollout_correction`."""
    checkpoint, options = tiny("qwen2_5_vl"), StartOptions(tmp_path_factory.mktemp("logs"), log_probs=True)
    if request.param == "server":
        settings = VllmServer(kind="vllm_server", start_seconds=300)
        started: Any = VllmServerEngine(checkpoint, Runtime(), settings, options, "student", trainable=True)
    else:
        started = VllmEngine(checkpoint, Runtime(), log_probs=True)
    yield started
    started.close()


def sample(engine: Any, sampling: Sampling, log_probs: bool = True) -> list[Answer]:
    """64 answers to one question, or the greedy one."""
    count = 64 if sampling.temperature else 1
    ((_, answers),) = engine.generate([Request("q", MESSAGES, (), sampling, count, seed=5, log_probs=log_probs)])
    return list(answers)


def weigh(checkpoint: Checkpoint, answers: list[Answer], temperature: float, kind: Correction) -> Tensor:
    """The weight that `ril.rollout_correction: kind` gives each token, with nearly no cap."""
    reader = load_reader(checkpoint)
    group = Group(reader.make_prompt(MESSAGES), tuple(one.token_ids for one in answers))
    (pack,) = make_packs([group], 8192)
    with torch.no_grad():
        trainer = response_log_probs(load_network(checkpoint, reader), pack, temperature=temperature)
    sampled = torch.tensor([value for one in answers for value in one.log_probs or ()])
    return rollout_weights(trainer, sampled, torch.ones(len(sampled), dtype=torch.bool), pack.response, kind, 1e6)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["truncate_token", "mask_sequence"])
def test_weights_are_1_at_every_temperature(engine: Any, tiny: Tiny, temperature: float, kind: Correction) -> None:
    answers = sample(engine, Sampling(max_tokens=16, temperature=temperature))
    assert len({one.token_ids for one in answers}) > 3
    weights = weigh(tiny("qwen2_5_vl"), answers, temperature, kind)
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.02)
    assert weights.tolist() == pytest.approx([1.0] * len(weights), abs=2e-2)


@pytest.mark.slow
def test_a_weight_is_the_mass_that_top_p_keeps(engine: Any, tiny: Tiny) -> None:
    answers = sample(engine, Sampling(max_tokens=16, top_p=0.9))
    weights = weigh(tiny("qwen2_5_vl"), answers, 1.0, "truncate_token")
    assert 0.9 - 1e-3 <= float(weights.min()) < 0.95
    assert float(weights.max()) <= 1 + 1e-3


@pytest.mark.slow
def test_a_penalty_is_part_of_sampling(engine: Any, tiny: Tiny) -> None:
    """A repeated token was sampled with a smaller probability than the trainer's: its weight is above 1."""
    answers = sample(engine, Sampling(max_tokens=16, repetition_penalty=1.3))
    weights = weigh(tiny("qwen2_5_vl"), answers, 1.0, "truncate_token")
    assert float(weights.max()) > 2
    assert float(weights.min()) < 0.5


@pytest.mark.slow
def test_greedy_answers_of_validation_are_those_of_an_engine_without_log_probs(tiny: Tiny, engine: Any) -> None:
    greedy = Sampling(max_tokens=16, temperature=0.0)
    found = sample(engine, greedy, log_probs=False)
    assert all(one.log_probs is None for one in found)
    plain = VllmEngine(tiny("qwen2_5_vl"), Runtime())
    try:
        assert [one.token_ids for one in sample(plain, greedy, log_probs=False)] == [one.token_ids for one in found]
        with pytest.raises(ValueError, match=r"started without StartOptions\.log_probs"):
            sample(plain, greedy)
    finally:
        plain.close()


def test_log_probs_of_a_reply_belong_to_its_tokens() -> None:
    def reply(*tokens: int, seen: tuple[float, ...]) -> dict[str, Any]:
        content = [{"token_id": token, "logprob": value} for token, value in zip(tokens, seen, strict=True)]
        return {"token_ids": [3, 4], "logprobs": {"content": content}}

    assert read_log_probs(reply(3, 4, seen=(-0.5, -1.0))) == (-0.5, -1.0)
    assert str(read_log_probs(reply(3, 4, seen=(-0.5, UNKNOWN)))) == "(-0.5, nan)"
    for broken in (reply(3, seen=(-0.5,)), reply(3, 5, seen=(-0.5, -1.0))):
        with pytest.raises(ValueError, match="which are not the 2 sent"):
            read_log_probs(broken)
    with pytest.raises(TypeError):
        read_log_probs({"token_ids": [3, 4], "logprobs": None})
