"""Stage `discriminator`: which questions it is measured on, and the measures."""

import gc
import weakref
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from stages import discriminator
from stages.adversary.question_texts import QuestionTexts
from stages.discriminator import measure_held_out, open_texts, split_held_out
from stages.job.job import Job
from stages.responses.draws import TeacherAnswer
from stages.vlm.checkpoint import open_checkpoint
from stages.vlm.reader import load_reader

Project = Callable[[str, Mapping[str, Any]], Job]


def texts_of(name: str, student: tuple[str, ...] = ("s",), teachers: tuple[str, ...] = ("t",)) -> QuestionTexts:
    answers = tuple(TeacherAnswer("ab"[n % 2], n, text, 1, "stop") for n, text in enumerate(teachers))
    question: Any = SimpleNamespace(messages=(), images=())
    return QuestionTexts(name, student, answers, question)


def test_no_held_out_question_is_trained_on_and_the_split_is_that_of_the_seed() -> None:
    names = [f"q{n}" for n in range(40)]
    training, held_out = split_held_out(names, 0.25, 3)
    assert len(held_out) == 10
    assert sorted([*training, *held_out], key=names.index) == names
    assert split_held_out(names[::-1], 0.25, 3)[1] == held_out[::-1]
    assert split_held_out(names, 0.25, 4)[1] != held_out


def test_both_sides_weigh_the_same_in_the_accuracy() -> None:
    held_out = [texts_of("q", ("+1", "+2", "-1", "+3"), ("-4", "+5")), texts_of("r", ("+4",), ("-1", "-2", "-3"))]
    adversary: Any = SimpleNamespace(score=lambda texts: [float(text.body) for text in texts])
    found = measure_held_out(adversary, held_out)
    assert (found["acc_student"], found["acc_teacher"]) == (0.8, 0.8)
    assert (found["acc_a"], found["acc_b"]) == (1.0, 0.5)
    assert found["acc"] == pytest.approx(0.8)
    assert found["logit_gap"] == pytest.approx(9 / 5 - -1.0)
    other = measure_held_out(adversary, [texts_of("q", ("+1", "-1", "-1", "-2"), ("-4", "-5"))])
    assert other["acc"] == pytest.approx((0.25 + 1) / 2)


def test_the_measures_are_those_of_the_held_out_questions(
    loop_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = loop_project("discriminator", {"discriminator": {"held_out_share": 0.34}})
    asked: list[list[str]] = []
    real = discriminator.measure_held_out
    monkeypatch.setattr(
        discriminator,
        "measure_held_out",
        lambda adversary, texts: asked.append([one.question_id for one in texts]) or real(adversary, texts),
    )
    discriminator.run(job)
    _, held_out = split_held_out(open_texts(job, False, "response").names, 0.34, job.seed("held out"))
    assert asked == [held_out]
    assert len(held_out) == 2


def test_nothing_keeps_the_tower_of_the_network(loop_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a view of the same mapped file as the language model, and would keep that in memory under ZeRO 3."""
    job, real, kept = loop_project("discriminator", {}), discriminator.load_network, []

    def load(*given: Any) -> Any:
        network = real(*given)
        kept.extend(weakref.ref(one) for one in network.family.get_vision_modules(network.model))
        return network

    monkeypatch.setattr(discriminator, "load_network", load)
    checkpoint = open_checkpoint(job.input("data/warm_start"))
    made = discriminator.make_discriminator(job, checkpoint, load_reader(checkpoint))
    gc.collect()
    assert kept
    assert not any(one() for one in kept)
    assert sum(one.numel() for one in made.text.parameters()) > 1000
