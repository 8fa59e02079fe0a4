"""The in-process vLLM engine on tiny checkpoints with random weights, against transformers."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.config.engines import Vllm
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.engines.engine import Answer, Request, RequestError
from stages.engines.vllm import VllmEngine
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card
from stages.vlm.reader import load_network, load_reader
from tests.conftest import SEEING

Tiny = Callable[[str], Checkpoint]
GREEDY = Sampling(temperature=0.0, max_tokens=24)
WARM = Sampling(temperature=1.0, top_p=0.95, top_k=50, max_tokens=24)


def picture(seed: int, width: int = 84) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (84, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def seeing_requests(sampling: Sampling, n: int = 1, count: int = 6) -> list[Request]:
    texts = [f"<image>What is the sum of the digits? <|im_end|> {index}" for index in range(count)]
    return [
        Request(f"q{i}", [{"role": "user", "content": text}], [picture(i, 84 + 28 * (i % 2))], sampling, n, 100 * i)
        for i, text in enumerate(texts)
    ]


def text_requests(sampling: Sampling, n: int = 1, count: int = 6) -> list[Request]:
    return [
        Request(f"t{i}", [{"role": "user", "content": f"Is {i} the sum of the digits?"}], [], sampling, n, 100 * i)
        for i in range(count)
    ]


def ids_of(engine: VllmEngine, requests: list[Request]) -> list[list[tuple[int, ...]]]:
    answers = dict(engine.generate(requests))
    return [[answer.token_ids for answer in answers[index]] for index in range(len(requests))]


@torch.no_grad()
def greedy_by_transformers(checkpoint: Checkpoint, requests: list[Request], model: torch.nn.Module | None = None):
    """Greedy continuation, one full forward pass a token through the ordinary model: slow and plain."""
    reader = load_reader(checkpoint)
    network = load_network(checkpoint, reader)
    if model is not None:
        network.model = model
    found = []
    for request in requests:
        prompt = reader.make_prompt(request.messages, request.images)
        features = network.encode_images(prompt.pixels) if prompt.pixels is not None else None
        ids, positions = prompt.ids, prompt.positions
        written: list[int] = []
        while len(written) < request.sampling.max_tokens and not set(written) & set(reader.chat.stop_token_ids):
            mask = torch.ones(len(ids), len(ids)).tril().bool()
            logits = network.head(network.compute_hidden(ids, positions, mask, features)[-1])
            logits[reader.chat.banned_token_ids] = -torch.inf
            written.append(int(logits.argmax()))
            ids = torch.cat([ids, torch.tensor(written[-1:])])
            positions = torch.cat([positions, positions.max() + torch.ones_like(positions[:, :1])], dim=1)
        found.append([tuple(written)])
    return found


@pytest.fixture(scope="module")
def engine_of(tiny: Tiny) -> Iterator[Callable[[str], VllmEngine]]:
    """One engine a family for the tests of this module, all alive in this process."""
    running: dict[str, VllmEngine] = {}

    def start(family: str) -> VllmEngine:
        if family not in running:
            running[family] = VllmEngine(tiny(family), Runtime(), Vllm(kind="vllm", sequences=16))
        return running[family]

    yield start
    for engine in running.values():
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("family", [*SEEING, "qwen2_5"])
def test_greedy_answers_equal_those_of_transformers(family: str, tiny: Tiny, engine_of) -> None:
    requests = text_requests(GREEDY) if family == "qwen2_5" else seeing_requests(GREEDY)
    assert ids_of(engine_of(family), requests) == greedy_by_transformers(tiny(family), requests)


@pytest.mark.slow
def test_prompts_have_the_trainers_length(family: str, tiny: Tiny, engine_of) -> None:
    """Un-expanded placeholders go in; were they expanded twice, the counts would differ (trap T5)."""
    requests = seeing_requests(GREEDY)
    reader = load_reader(tiny(family))
    for index, (answer,) in engine_of(family).generate(requests):
        prompt = reader.make_prompt(requests[index].messages, requests[index].images)
        assert answer.prompt_tokens == len(prompt.ids)


@pytest.mark.slow
def test_sample_i_has_seed_base_plus_i_in_any_batch(engine_of) -> None:
    engine = engine_of("qwen2_5_vl")
    whole = ids_of(engine, seeing_requests(WARM, n=4))
    assert len({ids for answers in whole for ids in answers}) > 12  # samples differ
    assert whole == ids_of(engine, seeing_requests(WARM, n=4))  # equal calls, equal bytes
    one = seeing_requests(WARM)[3]
    later = Request(one.name, one.messages, one.images, WARM, n=2, seed=one.seed + 2)
    assert ids_of(engine, [later]) == [whole[3][2:]]


@pytest.mark.slow
def test_answers_carry_text_counts_and_reason(engine_of) -> None:
    engine = engine_of("internvl3")
    answers: list[Answer] = [answer for _, group in engine.generate(seeing_requests(WARM, n=8)) for answer in group]
    stops = set(engine.chat.stop_token_ids)
    for answer in answers:
        assert not answer.failed
        assert answer.completion_tokens == len(answer.token_ids) <= 24
        assert answer.text == engine.chat.decode(answer.token_ids)
        assert (answer.finish_reason == "stop") == (answer.token_ids[-1] in stops)
        assert answer.finish_reason == "stop" or answer.completion_tokens == 24


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_banned_tokens_are_never_sampled(sampling: Sampling, tiny: Tiny, tmp_path: Path) -> None:
    """A model whose bias wants nothing but image placeholders (trap T1)."""
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    network = load_network(checkpoint, reader)
    network.head.weight.data[reader.chat.banned_token_ids] *= 50
    network.model.save_pretrained(tmp_path)
    reader.save(tmp_path)
    write_card(tmp_path, checkpoint.family, "fp32", 256)
    biased = VllmEngine(open_checkpoint(tmp_path), Runtime(), Vllm(kind="vllm", sequences=16))
    try:
        requests = seeing_requests(sampling, n=1 if sampling is GREEDY else 4)
        written = {token for answers in ids_of(biased, requests) for ids in answers for token in ids}
        assert written
        assert not written & set(biased.chat.banned_token_ids)
        biased.chat.banned_token_ids = []  # the test can fail: without the ban they are all it writes
        written = {token for answers in ids_of(biased, requests) for ids in answers for token in ids}
        assert written & set(reader.chat.banned_token_ids)
    finally:
        biased.close()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_new_weights_in_one_of_two_engines_beside_training(family: str, tiny: Tiny, engine_of) -> None:
    """As stage `ril` does in one process: student and judge in turn, an optimizer step, new weights for the student."""
    checkpoint = tiny(family)
    student, judge = engine_of(family), engine_of("qwen2_5")
    asked, judged = seeing_requests(GREEDY), text_requests(GREEDY)
    before, verdicts = ids_of(student, asked), ids_of(judge, judged)
    reader = load_reader(checkpoint)
    network = load_network(checkpoint, reader)
    original = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    optimizer = torch.optim.SGD(network.model.parameters(), lr=3.0)
    prompt = reader.make_prompt(asked[0].messages, asked[0].images)
    mask = torch.ones(len(prompt.ids), len(prompt.ids)).tril().bool()
    for _ in range(2):
        features = network.encode_images(prompt.pixels)  # the vision tower learns too: stale image features would show
        hidden = network.compute_hidden(prompt.ids, prompt.positions, mask, features)
        torch.nn.functional.cross_entropy(network.head(hidden[:-1]), prompt.ids[1:]).backward()
        torch.nn.utils.clip_grad_norm_(network.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        student.update_weights(network.model.state_dict().items())
        after = ids_of(student, asked)
        assert after != before
        assert after == greedy_by_transformers(checkpoint, asked, network.model)
        assert ids_of(judge, judged) == verdicts
        before = after
    student.update_weights(original.items())
    assert ids_of(student, asked) == greedy_by_transformers(checkpoint, asked)


@pytest.mark.slow
def test_a_prompt_that_is_too_long_is_named_and_the_engine_goes_on(engine_of) -> None:
    engine = engine_of("qwen2_5")
    long = Request("q-long", [{"role": "user", "content": "What is the sum? " * 200}], [], GREEDY)
    with pytest.raises(RequestError, match="question q-long"):
        list(engine.generate([*text_requests(GREEDY), long]))
    assert len(ids_of(engine, text_requests(GREEDY))) == 6


@pytest.mark.slow
def test_an_unreadable_image_is_named(engine_of) -> None:
    broken = Request("q-broken", [{"role": "user", "content": "<image>What?"}], [picture(0)[:60]], GREEDY)
    with pytest.raises(RequestError, match="question q-broken"):
        list(engine_of("qwen2_5_vl").generate([broken]))


@pytest.mark.slow
def test_a_call_that_is_given_up_leaves_nothing_behind(engine_of) -> None:
    engine = engine_of("qwen2_5_vl")
    whole = ids_of(engine, seeing_requests(WARM, n=4))
    stream = engine.generate(seeing_requests(WARM, n=4, count=40))
    next(stream)
    stream.close()
    assert ids_of(engine, seeing_requests(WARM, n=4)) == whole
