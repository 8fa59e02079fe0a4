"""Stage `evaluate`: exchanged pictures, scores; the whole stage runs in the smoke pipeline."""

from stages.corpora import Question
from stages.evaluate import exchanged, scores


def question(number: int, source: str) -> Question:
    image = bytes([number])
    return Question(f"q{number}", (image,), (str(number),), ({"role": "user", "content": "<image>"},), None, "1", source, "k")


def test_nobody_keeps_its_picture_and_sources_do_not_mix() -> None:
    asked = [question(n, "digits" if n % 3 else "bars") for n in range(20)]
    found = exchanged(asked)
    assert [q.id for q in found] == [q.id for q in asked]
    assert all(new.images != old.images for new, old in zip(found, asked, strict=True))
    by_image = {q.images: q.source for q in asked}
    assert all(by_image[q.images] == q.source for q in found)
    assert sorted(q.images for q in found) == sorted(q.images for q in asked)
    assert exchanged(asked) == found


def test_scores_by_kind_and_with_shuffled_images() -> None:
    rows = [
        {"kind": kind, "correct": right, "correct_shuffled": blind, "finish_reason": reason, "completion_tokens": tokens}
        for kind, right, blind, reason, tokens in (
            ("a", True, False, "stop", 10),
            ("a", False, False, "length", 30),
            ("b", True, True, "stop", 20),
            ("b", True, False, "stop", 20),
        )
    ]
    found = scores(rows)
    assert found["accuracy"] == 0.75
    assert found["by_kind"] == {"a": 0.5, "b": 1.0}
    assert found["accuracy_shuffled"] == 0.25
    assert found["truncated_share"] == 0.25
    assert found["mean_tokens"] == 20
    assert round(found["standard_error"], 4) == 0.2165
