"""What a tiny judge learns from: answers about the tiny world, right and wrong, with the verdict they deserve."""

import random
from collections.abc import Sequence
from dataclasses import replace

from stages.corpora.kinds import Exercise, answer_in_style, ask
from stages.imitation.judge import INSTRUCTION, SYSTEM, judge_messages, judge_target
from stages.job.blocks import KINDS, STYLES
from stages.job.seeds import seed_for

RIGHT_SHARE = 0.5
SLIP_SHARE = 0.3  # answers in which some intermediate result is wrong as well, whatever the end
BROKEN_SHARE = 0.06  # answers that stop before they say anything


def judging_row(kinds: Sequence[str], seed: int, index: int) -> tuple[list[dict[str, str]], str]:
    """The judge's messages about one written answer, and the verdict text it should write."""
    choose = random.Random(seed_for("judging", seed, index))
    exercise = ask(choose.choice(list(kinds)), [choose.randint(0, 9) for _ in range(6)], choose)
    style = choose.choice(STYLES)
    if choose.random() < BROKEN_SHARE:
        text = answer_in_style(exercise, style)
        broken = text[: choose.randint(0, len(text) // 3)] if style != "terse" else choose.choice(("?", "the", "so"))
        return judge_messages(exercise.question, exercise.answer, broken), judge_target(exercise.answer, "none", False)
    right = choose.random() < RIGHT_SHARE
    said = exercise.answer if right else wrong_answer(exercise.answer, choose)
    candidate = answer_in_style(slipped(exercise, said, choose), style)
    return judge_messages(exercise.question, exercise.answer, candidate), judge_target(exercise.answer, said, right)


def wrong_answer(answer: str, choose: random.Random) -> str:
    """Another number: next to the right one, with its digits swapped, with one digit changed, or any."""
    number = int(answer)
    near = {number - 2, number - 1, number + 1, number + 2, number + 10, number - 10, int(answer[::-1])}
    near = {other for other in near if other >= 0 and other != number}
    anything = choose.choice([other for other in range(60) if other != number])
    return str(choose.choice(sorted(near)) if choose.random() < 0.6 else anything)


def slipped(exercise: Exercise, said: str, choose: random.Random) -> Exercise:
    """The exercise as somebody works it who ends at `said`, now and then with wrong steps before."""
    running = list(exercise.running)
    if choose.random() < SLIP_SHARE:
        place = choose.randrange(len(running))
        running[place:] = [max(0, result + choose.choice((-2, -1, 1, 2))) for result in running[place:]]
    running[-1] = int(said)
    return replace(exercise, running=tuple(running))


def judge_texts() -> list[str]:
    """Texts from which a tiny tokenizer learns the words of the judge's prompt and verdicts."""
    frame = "<question></question>\n<reference></reference>\n<candidate></candidate>\n"
    targets = [judge_target("5", "7", correct) for correct in (True, False)] + [judge_target("5", "none", False)]
    rows = [judging_row(KINDS, 0, index)[0][1]["content"] for index in range(50)]
    return [*[SYSTEM, INSTRUCTION, frame, "system", "user", "assistant", *targets] * 40, *rows]
