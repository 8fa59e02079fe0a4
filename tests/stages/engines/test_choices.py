"""A judge at an endpoint that ignores patterns: its Yes or No is read from the log probabilities of its first token."""

import math
from pathlib import Path
from typing import Any

import pytest

from stages.config.engines import OpenAi
from stages.config.sampling import Sampling
from stages.config.verdict import Verdict
from stages.engines.choices import choose_word, list_words
from stages.engines.endpoint_engine import EndpointEngine
from stages.engines.engine import Request
from stages.judging.judge import PLAIN_PATTERN, make_judge_sampling, parse_verdict
from stages.vlm.checkpoint import open_checkpoint, write_card
from tests.faults.endpoint import Fake

WORDS = ("Yes", "No")
PLAIN = make_judge_sampling(Verdict(model="judge", form="plain"))


def report(*alternatives: tuple[str, float]) -> dict[str, Any]:
    """`logprobs` of a choice, in the form of OpenAI's API, with these alternatives of the first token."""
    found = [{"token": token, "logprob": log_prob, "bytes": None} for token, log_prob in alternatives]
    return {"content": [{"token": "The", "logprob": -0.1, "top_logprobs": found}, {"token": " cat", "logprob": 0}]}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (PLAIN_PATTERN, WORDS),
        ("a|b|c", ("a", "b", "c")),
        ("Yes", ()),
        ("[01]", ()),
        ("Yes|N.", ()),
        ("Yes|", ()),
        (None, ()),
    ],
)
def test_words_of_a_pattern(pattern: str | None, words: tuple[str, ...]) -> None:
    assert list_words(pattern) == words


@pytest.mark.parametrize(
    ("text", "reported", "chosen"),
    [
        ("No, it is not", report(("Yes", -0.1), ("No", -3.0)), "No, it is not"),  # what it says counts
        (" **yes**", None, " **yes**"),
        ("The answer", report(("The", -0.1), ("Yes", -4.0), ("No", -3.0)), "No"),
        ("The answer", report(("Yes", -3.0), (" yes", -3.5), ("No", -2.8)), "Yes"),  # 0.080 against 0.061
        ("The answer", report(("NO", -3.0), ("Not", -0.5), ("None", -0.2)), "No"),
        ("Yesterday", report(("Yesterday", -0.1), ("No", -9.0)), "No"),
        ("The answer", report(("The", -0.1)), "The answer"),
        ("The answer", report(("Yes", -math.inf), ("No", math.nan)), "The answer"),
        ("The answer", None, "The answer"),
        ("The answer", {"content": []}, "The answer"),
        ("The answer", {"content": [{"top_logprobs": None}]}, "The answer"),
        ("The answer", {"content": [{"top_logprobs": [{"token": "Yes"}]}]}, "The answer"),
        ("The answer", {"content": [{"top_logprobs": ["Yes"]}]}, "The answer"),
        ("The answer", {"content": [{"top_logprobs": [{"token": "Yes", "logprob": 10**400}]}]}, "The answer"),
        ("The answer", [1], "The answer"),
        ("", report(("Yes", -1.0)), "Yes"),
    ],
)
def test_the_likelier_word_is_chosen(text: str, reported: Any, chosen: str) -> None:
    assert choose_word(WORDS, text, {"logprobs": reported}) == chosen
    if reported is None:
        assert choose_word(WORDS, text, {}) == text


def ask(fake: Fake, folder: Path, sampling: Sampling, **endpoint: Any) -> list[str]:
    """The answers of an endpoint to three questions."""
    write_card(folder, "remote", "bf16", 4096, {"endpoint": {"provider": "them", "name": "big", **endpoint}})
    engine = EndpointEngine(open_checkpoint(folder), OpenAi(kind="openai", base_url=fake.url), "judge")
    asked = [Request(f"q{n}", [{"role": "user", "content": f"say {n}"}], [], sampling) for n in range(3)]
    try:
        return [answers[0].text for _, answers in sorted(engine.generate(asked))]
    finally:
        engine.close()


def test_a_plain_verdict_of_an_endpoint_is_its_likelier_word(fake: Fake, tmp_path: Path) -> None:
    fake.says = lambda question, sample: "I would say so."
    likelier = {"say 0": "Yes", "say 1": "No"}
    fake.reports = lambda question: report(("I", -0.1), (likelier.get(question, "Hm"), -5.0))
    texts = ask(fake, tmp_path, PLAIN)
    assert [parse_verdict(text, "plain") for text in texts] == [1, 0, None]
    assert all((body["logprobs"], body["top_logprobs"]) == (True, 20) for body in fake.bodies)
    assert all(body["structured_outputs"] == {"regex": "Yes|No"} for body in fake.bodies)


def test_an_endpoint_without_log_probabilities_must_answer_with_the_word(fake: Fake, tmp_path: Path) -> None:
    fake.says = lambda question, sample: {"say 0": "Yes.", "say 1": "no"}.get(question, "I would say so.")
    texts = ask(fake, tmp_path, PLAIN, leave_out=["logprobs", "top_logprobs", "structured_outputs"])
    assert [parse_verdict(text, "plain") for text in texts] == [1, 0, None]
    assert not any({"logprobs", "top_logprobs", "structured_outputs"} & body.keys() for body in fake.bodies)


def test_other_answers_carry_no_log_probabilities(fake: Fake, tmp_path: Path) -> None:
    ask(fake, tmp_path, make_judge_sampling(Verdict(model="judge", constrained=True)))
    assert not any("logprobs" in body for body in fake.bodies)
