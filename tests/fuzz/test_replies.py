"""Every scorer of every profile on hostile replies: an outcome each, within 50 ms and 10 MB.

Times are CPU times of this thread, the best of three, in the time that a yardstick takes beside them: a machine whose
cores are slower, or shared with other work, is given longer. `RIL_FUZZ=20000` is the long form.
"""

import gc
import random
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.benchmarks.bounds import LONGEST_JUDGE_TEXT, TOO_LONG, score_bounded
from stages.benchmarks.registry import load_registry
from stages.benchmarks.rules.by_kind import score_by_rule
from stages.benchmarks.sample import Outcome, Sample
from stages.benchmarks.scorers import OURS, PROFILES, Profile, Scorer
from stages.benchmarks.scores import BenchmarkReply, compute_benchmark_scores, score_row
from stages.benchmarks.verdicts import make_judge_prompt, score_judge_text, wants_judge
from stages.corpora.answer_kinds import Reference
from stages.corpora.final_answers import LONGEST_REPLY
from stages.corpora.scoring import is_correct
from stages.judging.judge import make_judge_messages, parse_verdict
from stages.judging.rules import find_rule_reason, is_plainly_right
from stages.responses.style import find_distinct
from stages.tiny.benchmarks.specs import SPECS
from tests.fuzz.mutations import HOSTILE_TEXTS, draw_inputs

MILLISECONDS, MEGABYTES = 50, 10
YARDSTICK, YARDSTICK_MILLISECONDS = re.compile(r"(?<![\w.])\d+"), 6.0  # on a quiet core
SPECS_BY_ID = {spec.id: spec for spec in (*load_registry().values(), *SPECS)}
PIECES = (
    *("\\boxed{", "\\boxed{{", "{", "}", "\\text{", "\\frac{1}{", "\\boxed{\\text{", "$", "`", "*", "_", "#", "> "),
    *("answer", "answer ", "answer is ", "Answer:", "\nAnswer:", "final answer", "final\n", "the ", "so ", "is "),
    *("= ", "\n", "\r\n", "\u2028", "\t", " ", "\u00a0", "\x00", "\ud800", "\u202e", "\u2066", "👩‍👩‍👧", "İ", "ß"),
    *("A", "B", "(A", "(A) ", "A. ", "A, ", "B:\n", "\nB. x", "B because ", "option A ", "choice is ", "Z ", "I "),
    *("1", "9", "1,", "1,111", "1.", ".5", "-1", "1/", "1e", "e1", "1e5", "1_000", "1 2 3 4 5 6 7 8 9 ", "%", "--"),
    *("١", "１", "²", "[", "]", "[1,", "'", '"', "(", ")", ",", ";", "答案", "选A", "答案是A", "cat ", "dog\n", "None"),
    *("<answer>", "</answer>", "<think>", "</think>", "◁think▷", "</s>", "<|im_end|>", "<|begin_of_box|>", "&lt;"),
    *("The answer is B. ", "B is wrong ", "I can't process this file.", "nan", "inf", "1e999999999", "score: 0.5 "),
    *("https://x.org/", "is 3 so ", "ok ", "thinking ", "first the answer ", "&#0000", "e\u0301"),
)
OPTIONS = {"A": "cat", "B": "dog", "C": "bird", "D": "fish"}
NUMBER = {"question_type": "free_form", "answer_type": "integer", "precision": None, "answer_option": ""}
CHOICE = {**NUMBER, "question_type": "multi_choice", "question": "1"}
SAMPLES = (
    Sample("1", "Which?", "A", OPTIONS, extra={**CHOICE, "answer_option": "A"}),
    Sample("2", "How many?", "14", extra=NUMBER),
    Sample("3", "How much?", "1.5", extra={**NUMBER, "answer_type": "float", "precision": 1.0}),
    Sample("4", "Which years?", "[2014, 2016]", extra={**NUMBER, "answer_type": "list"}),
    Sample("5", "Which colour?", "Blue", extra={**NUMBER, "answer_type": "text"}),
    Sample("6", "图中有几只鸟？", "B", {"A": "1", "B": "2.5", "C": "None"}, extra=CHOICE),
)

RULED = (
    *(Reference(text, question="How many in cm?") for text in ("14", "12 cm", "B", "yes", "red, white", "a red car")),
    Reference("dog", options=OPTIONS),
    Reference("It rises until 2010 and then falls slowly."),
    *(Reference("a cat", ("14", "cat"), scorer=name) for name in ("anls", "relaxed", "vqa", "exact")),
)


def list_scorers() -> list[tuple[str, Profile, Scorer]]:
    """All scorers by name and profile, each once."""
    found: dict[tuple[str, Profile], Scorer] = {}
    for spec in SPECS_BY_ID.values():
        rows = [*spec.scorers.items(), *spec.cot_scorers.items(), *spec.extracted.items()]
        rows += [(OURS, scorer) for scorer in spec.second.values()]
        found |= {(scorer.__name__, profile): scorer for profile, scorer in rows}
    return [(name, profile, scorer) for (name, profile), scorer in found.items()]


SCORERS = list_scorers()


def draw_reply(rng: random.Random) -> str:
    """A text of one to a few repeated pieces, from empty to longer than what is scored."""
    if rng.random() < 0.1:
        return rng.choice(HOSTILE_TEXTS) + rng.choice(("", "\nB", " 14"))
    length = int(2 ** rng.uniform(0, 16.2))
    if rng.random() < 0.4:  # a mixture
        few = rng.sample(PIECES, rng.randrange(2, 9))
        text = "".join(rng.choice(few) for _ in range(length // 4))
    else:  # one piece again and again: what makes a rule quadratic
        piece = rng.choice(PIECES) + rng.choice(("", "", rng.choice(PIECES)))
        text = piece * (length // len(piece) + 1)
    return rng.choice(("", rng.choice(PIECES))) + text[:length] + rng.choice(("", "!", "x", rng.choice(PIECES)))


def take_time(work: Callable[[], object]) -> float:
    """Milliseconds of CPU time of `work` in this thread, without collections of what other tests have left behind."""
    gc.disable()
    try:
        started = time.thread_time()
        work()
        return 1000 * (time.thread_time() - started)
    finally:
        gc.enable()


def measure(work: Callable[[], object]) -> float:
    """Milliseconds of `work`: above the bound, the best of three by the yardstick beside them."""
    took = take_time(work)
    for _ in range(3):
        if took <= MILLISECONDS:
            break
        slowness = take_time(lambda: YARDSTICK.findall("a1 " * 100_000)) / YARDSTICK_MILLISECONDS
        took = min(took, take_time(work) / max(slowness, 1.0))
    return took


def measure_memory(work: Callable[[], object]) -> float:
    """Megabytes at the peak of `work`."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def list_works(reply: str, rng: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """Whatever reads a reply, by name: scorers, the prompt of a judge, verdicts, rules, similarity of two texts."""
    for name, profile, scorer in SCORERS:
        sample = rng.choice(SAMPLES)
        text = reply[:LONGEST_JUDGE_TEXT] if name.endswith("extraction") else reply  # of a judge, not of a model
        yield f"{name} {profile} {sample.index}", partial(score_bounded, scorer, sample, text, profile)
    spec = rng.choice([one for one in SPECS_BY_ID.values() if one.judge != "none"])
    sample, profile = rng.choice(SAMPLES), rng.choice(PROFILES)
    yield f"judge prompt of {spec.id}", lambda: make_judge_prompt(spec, sample, reply)
    yield f"judge text of {spec.id}", lambda: score_judge_text(spec, sample, profile, reply)
    yield f"judge text of {spec.id}, cut", lambda: score_judge_text(spec, sample, profile, reply[:LONGEST_JUDGE_TEXT])
    yield "judge messages", lambda: make_judge_messages("Which?", "14", reply)
    yield "verdict", lambda: parse_verdict(reply)
    yield "rule reason", lambda: find_rule_reason(reply, "14")
    yield "plainly right", lambda: is_plainly_right(reply, "14")
    yield "is correct", lambda: is_correct(reply, rng.choice(("14", "Blue")))
    for wanted in rng.sample(RULED, 3):
        yield f"rule: {wanted.kind}, {wanted.scorer}", lambda wanted=wanted: score_by_rule(reply, wanted)
    yield "similarity", lambda: find_distinct([reply[:LONGEST_REPLY], reply[1:LONGEST_REPLY]], 0.9)


def test_every_scorer_gives_an_outcome_in_time() -> None:
    for rng in draw_inputs():
        reply = draw_reply(rng)
        long = len(reply) > 8000 and rng.random() < 0.25
        for name, work in list_works(reply, rng):
            took = measure(work)
            assert took <= MILLISECONDS, f"{name}: {took:.0f} ms for {len(reply):,} characters {reply[:60]!r}"
            if long:
                peak = measure_memory(work)
                assert peak <= MEGABYTES, f"{name}: {peak:.1f} MB for {len(reply):,} characters {reply[:60]!r}"


@pytest.mark.parametrize("piece", PIECES, ids=ascii)
def test_no_repeated_piece_takes_longer_than_linear_time(piece: str) -> None:
    """At the longest reply that is scored, with an end that no rule expects."""
    reply = (piece * (LONGEST_REPLY // len(piece) + 1))[: LONGEST_REPLY - 2] + " !"
    for name, work in list_works(reply, random.Random(0)):
        took = measure(work)
        assert took <= MILLISECONDS, f"{name}: {took:.0f} ms"


@given(st.text(max_size=300))
def test_any_text_has_an_outcome(reply: str) -> None:
    for _, profile, scorer in SCORERS:
        for sample in SAMPLES:
            outcome = score_bounded(scorer, sample, reply, profile)
            assert outcome.state in ("ok", "unparsed")
            assert 0 <= outcome.score <= 1


def test_a_megabyte_is_unparsed_with_its_reason_and_the_others_are_scored() -> None:
    spec = SPECS_BY_ID["mmstar"]
    samples = [replace(SAMPLES[0], index=str(place)) for place in range(3)]
    texts = ("B " * 500_000, "A", "<think>" + "B " * 500_000 + "</think>A")
    replies = {str(place): BenchmarkReply(str(place), text) for place, text in enumerate(texts)}
    assert score_row(spec, samples[0], replies["0"], OURS, False, {}) == Outcome("unparsed", rule=TOO_LONG)
    numbers = compute_benchmark_scores(spec, samples, replies, OURS)
    assert (round(numbers["score"], 1), round(numbers["unparsed"], 1)) == (66.7, 33.3)
    assert numbers["not_scored"] == {"0": "not scored: longer than 65,536 characters"}
    assert wants_judge(spec, samples[0], texts[0], Outcome("unparsed", rule=TOO_LONG))


def test_a_scorer_that_fails_leaves_its_reply_unparsed_with_the_reason() -> None:
    def overflow(_sample: Sample, reply: str) -> Outcome:
        return Outcome.from_extraction(str(int(float(reply))), True, "none")

    assert score_bounded(overflow, SAMPLES[1], "1e999", OURS) == Outcome(
        "unparsed", rule="not scored: OverflowError: cannot convert float infinity to integer"
    )
