"""Our rules, as a table: what a careful reader would take for the answer, and None where one would not know."""

import pytest

from stages.benchmarks.registry import load_registry
from stages.benchmarks.rules import ours
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import score_ours_mathvista, score_ours_open, score_ours_relaxed
from stages.benchmarks.scores import BenchmarkReply, compute_benchmark_scores

OPTIONS = {"A": "cat", "B": "dog", "C": "bird", "D": "fish"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("b.", "B"),
        ("**B**", "B"),
        ("\\boxed{B}", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("B) dog", "B"),
        ("B. dog", "B"),
        ("The answer is B because A is too small.", "B"),
        ("The answer is cat", "A"),
        ("The correct answer is dog", "B"),
        ("the answer is described below: fish", "D"),
        ("A is wrong, so the answer is C.", "C"),
        ("Answer: B. Because it is C", "B"),
        ("Let me think. A is wrong because x.\nAnswer: B", "B"),
        ("Answer: A\nNo, wait.\nAnswer: D", "D"),
        ("It is a dog", "B"),
        ("<think>B, surely</think>C", "C"),
        ("<think>B, and it never ends", None),
        ("hot dogs everywhere", None),
        ("a building", None),
        ("either A or C", None),
        ("The answer is E", None),
        ("I can't help.", None),
        ("", None),
        ("...", None),
        ("Cannot determine the answer", None),
        ("I choose (B). DNA test", "B"),
        ("答案是B", "B"),
        ("答案：C", "C"),
        ("cat and dog", None),
        ("Final answer: (D)", "D"),
        ("**Answer:** C", "C"),
        ("The option is A, not B", "A"),
        ("Not A. Not B. It must be: fish!", "D"),
        # the letter first, then an explanation
        ("B\n\nExplanation: A cat is not here.", "B"),
        ("B.\nA cat would have whiskers.", "B"),
        ("(B) dog\nReasoning: A bird has wings.", "B"),
        ("**B**\n\nA fish lives in water; this animal barks.", "B"),
        ("B: dog. A is wrong because a cat is smaller.", "B"),
        ("Option B. A cat is smaller.", "B"),
        ("B - the animal barks, which a cat doesn't.", "B"),
        ("B, because A is small", "B"),
        ("**Option B**: A cat is smaller", "B"),
        ("(b) dog and not a cat", "B"),
        ("B\nOption A is wrong, as the answer is not A", "B"),
        ("B) dog. A) is too small", "B"),
        ("A. cat: no\nB. dog: yes\nC. no", None),
        ("A) cat B) dog", None),
        ("A: no. B: yes.", None),
        ("A, B and C are wrong", None),
        ("(A) and (B) are both wrong", None),
        ("(A) is incorrect", None),
        ("A is wrong", None),
        ("B-52 bomber", None),
        # tags, boxes and tokens of reasoning models
        ("<answer>B</answer>", "B"),
        ("<think>hm, A?</think><answer>\n(B)\n</answer>", "B"),
        ("<answer>B. dog</answer>", "B"),
        ("<answer>\\boxed{B}</answer>", "B"),
        ("<answer>B", "B"),
        ("x <answer></answer>", None),
        ("<|begin_of_box|>B<|end_of_box|>", "B"),
        ("◁think▷maybe A◁/think▷The answer is B.", "B"),
        ("Answer: B<|im_end|>", "B"),
        ("B</s></s>", "B"),
        ("**Answer:** **B**", "B"),
        ("选B", "B"),
        ("\\boxed{\\text{\\bf{B}}} or \\boxed{D}", "D"),
    ],
)
def test_choice(reply: str, letter: str | None) -> None:
    assert ours.read_choice(reply, OPTIONS)[0] == letter


def test_numbers_as_options_are_whole() -> None:
    options = {"A": "1", "B": "1.5", "C": "15", "D": "150"}
    assert ours.read_choice("It is 1.5 cm", options)[0] == "B"
    assert ours.read_choice("about 15 in all", options)[0] == "C"
    assert ours.read_choice("115", options)[0] is None


def test_a_text_inside_a_longer_one_does_not_count() -> None:
    options = {"A": "cat", "B": "black cat", "C": "dog"}
    assert ours.read_choice("a black cat", options)[0] == "B"


@pytest.mark.parametrize(
    ("kind", "gold", "precision", "reply", "state", "score"),
    [
        ("integer", "14", None, "14", "ok", 1),
        ("integer", "14", None, "The answer is 14.", "ok", 1),
        ("integer", "14", None, "14 cm", "ok", 1),
        ("integer", "14", None, "So 3 + 11 = 14", "ok", 1),
        ("integer", "14", None, "fourteen", "unparsed", 0),
        ("integer", "1200", None, "1,200", "ok", 1),
        ("integer", "14", None, "14.7", "ok", 0),
        ("integer", "14", None, "<think>3</think><answer>14</answer> apples: 5", "ok", 1),
        ("integer", "1", None, "1_000", "ok", 0),
        ("integer", "2", None, "1/2", "ok", 0),
        ("integer", "14", None, "1/0", "unparsed", 0),
        ("integer", "14", None, "answer: 1e999999999", "unparsed", 0),
        ("integer", "14", None, "9" * 2000, "unparsed", 0),
        ("integer", "0", None, "0." + "0" * 400, "ok", 1),
        ("float", "-1.5", 1.0, "It is −1.5", "ok", 1),
        ("integer", "3", None, "between 2-3", "ok", 1),
        ("float", "0.5", 1.0, "1/2", "ok", 1),
        ("list", "[1, 2]", None, "[1] ---(3,000)--- [2]", "unparsed", 0),
        ("list", "[1, 2]", None, "[1.0, 2,]", "ok", 1),
        ("list", "['a', 2]", None, '["a", 2]', "ok", 1),
        ("float", "1.2", 1.0, "1.24", "ok", 1),
        ("float", "1.2", 1.0, "\\boxed{1.2}", "ok", 1),
        ("float", "1.45", 2.0, "1.46", "ok", 0),
        ("list", "[2014, 2016]", None, "[2014,2016]", "ok", 1),
        ("list", "[2014, 2016]", None, "2014 and 2016", "unparsed", 0),
        ("text", "Blue", None, "The answer is blue.", "ok", 1),
    ],
)
def test_mathvista(kind: str, gold: str, precision: float | None, reply: str, state: str, score: int) -> None:
    extra = {"question_type": "free_form", "answer_type": kind, "precision": precision, "answer_option": ""}
    outcome = score_ours_mathvista(Sample("1", "q", gold, extra=extra), reply)
    assert (outcome.state, outcome.score) == (state, score)


@pytest.mark.parametrize(
    ("gold", "reply", "score"),
    [
        ("100", "105", 1),
        ("100", "105.01", 0),
        ("10%", "0.1", 1),
        ("10%", "10", 0),
        ("0", "0.0", 0),
        ("2014", "1914", 1),
        ("Yes", "yes", 1),
        ("Yes", "Yes.", 0),
        ("12000", "12,000", 0),
        ("['Blue', 'Red']", "red ", 1),
        ("5", "<think>4</think>5", 1),
    ],
)
def test_relaxed(gold: str, reply: str, score: int) -> None:
    assert score_ours_relaxed(Sample("1", "q", gold), reply).score == score


@pytest.mark.parametrize(
    ("gold", "reply", "score"),
    [
        ("1.06", "The answer is 1.06.", 1),
        ("1.06", "1.064", 1),
        ("1.06", "1.066", 0),
        ("5", "There are 5 apples", 1),
        ("5", "15", 0),
        ("C", "The answer is C", 1),
        ("-3", "- 3", 0),
        ("0.05", "5%", 0),
        ("['24/7', '3.429']", "3.43", 1),
    ],
)
def test_open(gold: str, reply: str, score: int) -> None:
    assert score_ours_open(Sample("1", "q", gold), reply).score == score


def test_unparsed_counts_as_wrong_and_is_shown_with_what_guessing_would_give() -> None:
    spec = load_registry()["seedbench"]
    samples = [Sample(str(n), "q", "B", OPTIONS, groups={"category": ("x" if n else "y",)}) for n in range(4)]
    replies = {"0": "B", "1": "B", "2": "no idea", "3": "C"}
    found = compute_benchmark_scores(
        spec, samples, {index: BenchmarkReply(index, text, "length") for index, text in replies.items()}, "ours"
    )
    assert (found["score"], found["unparsed"], found["if_random"], found["truncated"]) == (50, 25, 56.25, 100)
    assert found["by"]["category"] == {"x": {"n": 3, "score": pytest.approx(100 / 3)}, "y": {"n": 1, "score": 100}}
    assert found["beside"]["mean of dimensions"] == pytest.approx(200 / 3)
    assert found["complete"]
    lost = compute_benchmark_scores(spec, samples, {"0": BenchmarkReply("0", "B")}, "ours")
    assert not lost["complete"]
    assert lost["missing"] == 75
