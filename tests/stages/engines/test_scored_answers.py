"""Log probabilities of given answers, by vLLM, against a plain computation with transformers."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from stages.config.image_limits import ImageLimits
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.engines.arguments import encode_request, make_sampling_arguments, make_scored_answer
from stages.engines.calls import BadReply
from stages.engines.endpoint_engine import EndpointEngine
from stages.engines.engine import Request, RequestError
from stages.engines.server_replies import read_answers
from stages.engines.vllm import VllmEngine
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_reader

SCORING = Sampling(temperature=0.0, max_tokens=1)
ANSWERS = ["16", "3:3, 8:11, 5:16, so the sum is 16.", "The digits are 3, 8 and 5.", "is", "the image", "16 5 8"]
SIZES = [(84, 84), (84, 112), (84, 84), (84, 112), (900, 1200), (1500, 300)]  # the last two are above the limits
# Limits on images, and how a user of transformers sets them. Without, the first has 64 tokens and the second one tile.
LIMITS: dict[str, tuple[ImageLimits, dict[str, Any]]] = {
    "qwen2_5_vl": (
        ImageLimits(max_pixels=784 * 20, min_pixels=784 * 10),
        {"size": {"shortest_edge": 784 * 10, "longest_edge": 784 * 20}},
    ),
    "qwen3_vl": (
        ImageLimits(max_pixels=1024 * 20, min_pixels=1024 * 10),
        {"size": {"shortest_edge": 1024 * 10, "longest_edge": 1024 * 20}},
    ),
    "internvl3": (ImageLimits(min_tiles=2, max_tiles=5), {"min_patches": 2, "max_patches": 5}),
}


def make_requests(answers: Sequence[str] = ANSWERS) -> list[Request]:
    """One question with an image for each answer; images differ in content and size."""
    found = []
    for index, answer in enumerate(answers):
        pixels = np.random.default_rng(index).integers(0, 255, (*SIZES[index], 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        asked = {"role": "user", "content": f"<image>What is the sum of the digits? {index}"}
        given = {"role": "assistant", "content": answer}
        found.append(Request(f"q{index}", [asked, given], [buffer.getvalue()], SCORING))
    return found


@torch.no_grad()
def score_by_transformers(checkpoint: Checkpoint, request: Request) -> list[float]:
    """Log p of the answer's tokens and of the end-of-turn token: one forward pass of the published model class."""
    processor = AutoProcessor.from_pretrained(checkpoint.weights, **LIMITS[checkpoint.family][1])
    model = AutoModelForImageTextToText.from_pretrained(checkpoint.weights, dtype=torch.float32).eval()
    text = request.messages[0]["content"].removeprefix("<image>")
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    picture = Image.open(io.BytesIO(request.images[0])).convert("RGB")
    inputs = processor(text=[prompt], images=[picture], return_tensors="pt")
    answer = processor.tokenizer(request.messages[1]["content"], add_special_tokens=False).input_ids
    ids = torch.tensor([[*answer, processor.tokenizer.eos_token_id]])
    start = inputs["input_ids"].shape[1]
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.full_like(ids, fill)], dim=1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    log_probs = model(**inputs).logits[0, start - 1 : -1].log_softmax(dim=-1)
    return log_probs.gather(1, ids[0][:, None])[:, 0].tolist()


@pytest.mark.slow
def test_log_probs_of_given_answers_are_those_of_transformers(tiny: Callable[[str], Checkpoint], family: str) -> None:
    """In any batch: together, alone, and in another order; with limits on images, which large images exceed."""
    checkpoint, requests = replace(tiny(family), limits=LIMITS[family][0]), make_requests()
    expected = [score_by_transformers(checkpoint, request) for request in requests]
    assert np.ptp([sum(one) / len(one) for one in expected]) > 0.1  # the model has opinions
    engine = VllmEngine(checkpoint, Runtime())
    together = [answers for _, answers in sorted(engine.generate(requests))]
    order = [3, 0, 5, 1, 4, 2]
    mixed = dict(engine.generate([requests[place] for place in order]))
    alone = [next(engine.generate([request]))[1] for request in requests[:2]]
    chat = load_reader(checkpoint).chat
    given = [tuple(chat.encode_response(answer)) for answer in ANSWERS]
    tokens = [replace(one, messages=one.messages[:1], given_ids=ids) for one, ids in zip(requests, given, strict=True)]
    by_ids = [answers for _, answers in sorted(engine.generate(tokens))]
    generated = dict(engine.generate([Request("g", requests[0].messages[:1], requests[0].images, SCORING)]))
    engine.close()
    for place, (request, answers, theirs) in enumerate(zip(requests, together, expected, strict=True)):
        (answer,) = answers
        assert answer.log_probs == pytest.approx(theirs, abs=2e-4), place
        assert (answer.text, answer.finish_reason) == (ANSWERS[place], "stop")
        assert answer.completion_tokens == len(answer.token_ids) == len(theirs)
        prompt = load_reader(checkpoint).make_prompt(request.messages[:1], request.images)
        assert answer.prompt_tokens == len(prompt.ids)
        assert mixed[order.index(place)][0].log_probs == pytest.approx(answer.log_probs, abs=1e-5)
    for answers, theirs in zip(alone, expected, strict=False):
        assert answers[0].log_probs == pytest.approx(theirs, abs=2e-4)
    for answers, theirs in zip(by_ids, expected, strict=True):
        assert answers[0].log_probs == pytest.approx(theirs, abs=2e-4)
    assert generated[0][0].log_probs is None


def test_only_the_end_of_the_scored_tokens_is_the_answers(tiny: Callable[[str], Checkpoint]) -> None:
    chat = load_reader(tiny("qwen2_5_vl")).chat
    (request,) = make_requests(["16"])
    count = len(chat.encode_response("16"))
    found = make_scored_answer(request, chat, [-9.0] * 20 + [-0.5] * count)
    assert found.log_probs == (-0.5,) * count
    assert (found.prompt_tokens, found.completion_tokens, found.failed) == (21, count, False)
    for value in (float("nan"), float("-inf")):
        assert make_scored_answer(request, chat, [-9.0] * 20 + [-0.5] * (count - 1) + [value]).failed
        assert not make_scored_answer(request, chat, [value] * 20 + [-0.5] * count).failed


def test_given_ids_are_sent_and_scored_as_they_are(tiny: Callable[[str], Checkpoint]) -> None:
    """Ids that no text gives: "16" in two tokens where the tokenizer has one, and no end (trap T6)."""
    chat = load_reader(tiny("qwen2_5_vl")).chat
    (request,) = make_requests(["16"])
    spelled = tuple(token for sign in "the" for token in chat.encode_text(sign))
    assert list(spelled) != chat.encode_text("the")
    asked = replace(request, messages=request.messages[:1], given_ids=spelled)
    prompt = chat.encode_prompt(request.messages[:1], 1)
    assert encode_request(asked, chat) == [*prompt, *spelled]
    found = make_scored_answer(asked, chat, [-9.0] * 20 + [-0.25, -0.5, -0.75])
    assert (found.token_ids, found.text, found.log_probs) == (spelled, "the", (-0.25, -0.5, -0.75))
    assert (found.prompt_tokens, found.completion_tokens) == (21, 3)
    assert make_sampling_arguments(asked, chat, never=-1.0)["prompt_logprobs"] == 0
    generated = replace(request, messages=request.messages[:1])
    assert "prompt_logprobs" not in make_sampling_arguments(generated, chat, never=-1.0)
    assert not generated.is_scored


def test_a_servers_reply_is_read_or_refused(tiny: Callable[[str], Checkpoint]) -> None:
    chat = load_reader(tiny("qwen2_5_vl")).chat
    (request,) = make_requests(["16"])
    count = len(chat.encode_response("16"))
    entries = [None, *({str(7 + place): {"logprob": -0.25 * place, "rank": 1}} for place in range(9 + count))]
    reply = {"prompt_logprobs": entries, "usage": {"prompt_tokens": len(entries)}}
    (found,) = read_answers(request, chat, reply)
    assert found.log_probs == pytest.approx([-0.25 * place for place in range(9, 9 + count)])
    for wrong in (None, entries[:-1], [*entries[:-1], None], [*entries[:-1], {"7": {"rank": 1}}]):
        with pytest.raises(BadReply):
            read_answers(request, chat, {**reply, "prompt_logprobs": wrong})


def test_an_endpoint_is_not_asked_to_score() -> None:
    engine: Any = SimpleNamespace(label="rented")
    (request,) = make_requests(["16"])
    by_ids = replace(request, messages=request.messages[:1], given_ids=(5,))
    for asked in (request, by_ids):
        with pytest.raises(RequestError, match="question q0: the endpoint of rented does not give log probabilities"):
            EndpointEngine._make_body(engine, asked)
