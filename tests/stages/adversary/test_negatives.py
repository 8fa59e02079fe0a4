"""Negatives: what they are made of, their weight in the loss, and that nothing broken earns anything with them."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from stages import discriminator
from stages.adversary.discriminator_model import NEGATIVE, Text, weigh_sides
from stages.adversary.negatives import add_negatives, make_negatives
from stages.groups.response import STUDENT
from stages.job.job import Job
from tests.performance.broken_texts import CLOSED, WHOLE, measure_run, read_groups

ANSWERS = ["3:3,8:11. Answer: 11", "28", "so it is 5", "16 is the sum"]


def test_negatives_are_made_of_the_answers_and_are_none_of_them() -> None:
    kinds = Counter[str]()
    for number in range(200):
        answers = [f"{text} {number}" for text in ANSWERS]
        made = make_negatives(answers, 4)
        assert len(made) <= 4
        assert made == make_negatives(answers, 4), "the answers determine the draw"
        for text in made:
            assert text == text.strip() != ""
            assert text not in answers
            assert set(text) <= set("".join(answers)) | {"\n"}
            whole = sum(text.count(answer) for answer in answers)
            kinds["two"] += whole == 2
            kinds["part"] += any(answer.startswith(text) for answer in answers)
            kinds["repeated"] += any(text[:n] * 2 == text[: 2 * n] for n in range(1, len(text) // 2 + 1))
            kinds["scrambled"] += any(sorted(text) == sorted(answer) for answer in answers)
    assert set(kinds) == {"two", "part", "repeated", "scrambled"}
    assert min(kinds.values()) > 100
    assert make_negatives(ANSWERS, 0) == []
    assert "5" not in make_negatives(["5"], 50)
    assert make_negatives(["", *ANSWERS, " "], 4) == make_negatives(ANSWERS, 4)
    assert make_negatives(["", " "], 4) == []


def test_they_follow_the_texts_of_their_question_and_weigh_as_much_as_a_side() -> None:
    texts = [Text(f"{text} {name}", name) for name in "ab" for text in ANSWERS]
    writers = [STUDENT, STUDENT, "x", "y"] * 2
    found, roles = add_negatives(texts, writers, 3)
    assert [text for text, role in zip(found, roles, strict=True) if role != NEGATIVE] == texts
    assert [role for role in roles if role != NEGATIVE] == writers
    names = [text.question_id for text in found]
    assert names == sorted(names), "texts of a question stay adjacent"
    weights = weigh_sides(roles).tolist()
    by_role = {role: sum(w for w, one in zip(weights, roles, strict=True) if one == role) for role in set(roles)}
    assert by_role == pytest.approx({STUDENT: 1 / 2, "x": 1 / 4, "y": 1 / 4, NEGATIVE: 1 / 2})
    assert add_negatives(texts, writers, 0) == (texts, writers)


@pytest.mark.slow
@pytest.mark.parametrize("negatives", [2, 0])
def test_nothing_broken_earns_similarity_before_and_after_30_updates(
    loop_project: Callable[[str, Mapping[str, Any]], Job], negatives: int
) -> None:
    """With Eq. 1 alone it does: the test sees the hole that negatives close."""
    overlay = {
        "discriminator": {"negatives": negatives, "steps": 150, "questions_per_step": 5, "learning_rate": 1e-3},
        "ril": {"questions_per_step": 5, "discriminator_learning_rate": 1e-4},
    }
    job = loop_project("discriminator", overlay)
    discriminator.run(job)
    before, after = measure_run(loop_project("ril", overlay), read_groups(job), 60, 2)
    print(negatives, before, after)
    for shares in (before, after):
        assert shares[WHOLE] > 0.9
        earned = {kind: shares[kind] for kind in CLOSED if shares[kind] > 0}
        assert earned == {} if negatives else max(earned.values()) > 0.2
