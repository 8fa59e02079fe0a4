"""What a tiny judge learns from: answers with the verdict they deserve, about the tiny world and about anything else.

The world's answers are what it will mostly read. The other lessons make it a judge: answers of many lengths and forms
in prose without sense, so that it compares what is said with the reference and heeds nothing around it.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from stages.config.world import KIND_NAMES, STYLE_NAMES
from stages.groups.pack import Group
from stages.job.seeds import derive_seed
from stages.judging.judge import INSTRUCTION, JUDGE_SYSTEM, make_judge_messages, make_judge_target
from stages.tiny.builds import phrases
from stages.tiny.world.kinds import Exercise, answer_in_style, ask_question
from stages.vlm.reader import Reader

WORLD_SHARE = 0.25
RIGHT_SHARE = 0.5
SLIP_SHARE = 0.3  # answers in which some intermediate result is wrong as well, whatever the end
BROKEN_SHARE = 0.06  # answers that stop before they say anything
UNSURE_SHARE = 0.03
NOTHING_SHARE = 0.03

JudgeExample = tuple[
    list[dict[str, str]], str
]  # the judge's messages about one answer, and the verdict text it should write


def draw_judge_example(kinds: Sequence[str], seed: int, index: int, bare: bool = False) -> JudgeExample:
    """The lesson number `index`; `bare`: without prose around answers."""
    choose = random.Random(derive_seed("judging", seed, index))
    return draw_world_example(kinds, choose) if choose.random() < WORLD_SHARE else draw_general_example(choose, bare)


def draw_world_example(kinds: Sequence[str], choose: random.Random) -> JudgeExample:
    """An answer to a question of the tiny world, in one of its styles."""
    exercise = ask_question(choose.choice(list(kinds)), [choose.randint(0, 9) for _ in range(6)], choose)
    style = choose.choice(STYLE_NAMES)
    if choose.random() < BROKEN_SHARE:
        text = answer_in_style(exercise, style)
        broken = text[: choose.randint(0, len(text) // 3)] if style != "terse" else choose.choice(("?", "the", "so"))
        return make_judge_messages(exercise.question, exercise.answer, broken), make_judge_target(
            exercise.answer, "none", False
        )
    right = choose.random() < RIGHT_SHARE
    said = exercise.answer if right else draw_wrong_answer(exercise.answer, choose)
    candidate = answer_in_style(make_slip(exercise, said, choose), style)
    return make_judge_messages(exercise.question, exercise.answer, candidate), make_judge_target(
        exercise.answer, said, right
    )


def draw_wrong_answer(answer: str, choose: random.Random) -> str:
    """Another number as the world has them: next to the right one, its digits swapped, or any."""
    number = int(answer)
    near = {number - 2, number - 1, number + 1, number + 2, number + 10, number - 10, int(answer[::-1])}
    near = {other for other in near if other >= 0 and other != number}
    anything = choose.choice([other for other in range(60) if other != number])
    return str(choose.choice(sorted(near)) if choose.random() < 0.6 else anything)


def make_slip(exercise: Exercise, said: str, choose: random.Random) -> Exercise:
    """The exercise as somebody works it who ends at `said`, now and then with wrong steps before."""
    running = list(exercise.running)
    if choose.random() < SLIP_SHARE:
        place = choose.randrange(len(running))
        running[place:] = [max(0, result + choose.choice((-2, -1, 1, 2))) for result in running[place:]]
    running[-1] = int(said)
    return replace(exercise, running=tuple(running))


def draw_general_example(choose: random.Random, bare: bool = False) -> JudgeExample:
    """An answer to any question: a number in some form and frame, with prose around it."""
    reference = draw_number(choose)
    told = f"{int(reference):,}" if reference.isdigit() and len(reference) > 3 and choose.random() < 0.1 else reference
    question = (
        fill_frame(choose.choice(phrases.QUESTIONS), choose)
        if choose.random() < 0.5
        else phrases.draw_prose(choose, draw_numbers(choose))
    )
    draw = choose.random()
    if draw < NOTHING_SHARE:
        nothing = (
            phrases.draw_prose(choose)
            if choose.random() < 0.5
            else fill_frame(choose.choice(phrases.NO_ANSWERS), choose)
        )
        return make_judge_messages(question, told, nothing), make_judge_target(reference, "none", False)
    if draw < NOTHING_SHARE + UNSURE_SHARE:
        pair = [vary_number_form(reference, choose), vary_number_form(draw_wrong_number(reference, choose), choose)]
        choose.shuffle(pair)
        shown = choose.choice(phrases.UNSURE).replace("{x}", pair[0]).replace("{y}", pair[1])
        return make_judge_messages(
            question, told, fill_frame(choose.choice(phrases.FRAMES), choose).replace("{x}", shown)
        ), make_judge_target(reference, "unsure", False)
    right = choose.random() < RIGHT_SHARE
    said = reference if right else draw_wrong_number(reference, choose)
    candidate = phrase_answer(vary_number_form(said, choose), reference, choose, bare)
    return make_judge_messages(question, told, candidate), make_judge_target(reference, said, right)


def phrase_answer(shown: str, reference: str, choose: random.Random, bare: bool) -> str:
    """`shown` as an answer: in a frame, with prose before and after it.

    The last number is the answer, unless a frame says plainly which one is: after such a frame other numbers may
    follow.
    """
    draw = choose.random()
    if draw < 0.25:
        frame, firm = fill_frame(choose.choice(phrases.FIRM), choose), True
    elif draw < 0.55:
        frame, firm = fill_frame(choose.choice(phrases.FRAMES), choose), False
    else:
        frame, firm = phrases.make_frame(choose)
    if choose.random() < 0.05:
        frame = frame.upper().replace("{X}", "{x}")
    if choose.random() < 0.2:
        wrap = phrases.make_wrap(choose) if choose.random() < 0.7 else choose.choice(phrases.WRAPS)
        frame = frame.replace("{x}", wrap)
    parts = [frame.replace("{x}", shown)]
    if bare:
        return parts[0]
    while choose.random() < 0.4 and len(parts) < 4:
        numbers = draw_numbers(choose, reference)
        listed = len(numbers) > 2 and choose.random() < 0.8
        parts = [phrases.draw_listing(choose, numbers) if listed else phrases.draw_prose(choose, numbers), *parts]
    while choose.random() < (0.45 if firm else 0.2) and len(parts) < 5:
        parts += [phrases.draw_prose(choose, draw_numbers(choose, reference)[:2] if firm else (), inside=True)]
    return choose.choice((" ", " ", " ", "\n")).join(parts)


def draw_numbers(choose: random.Random, reference: str = "") -> list[str]:
    """None to nine numbers that mean nothing; now and then the reference is among them, as a trap."""
    count = choose.choice((0, 0, 0, 1, 1, 2, 2, 3, 6, 9))
    found = [str(choose.randint(0, choose.choice((9, 99, 99, 999, 2030)))) for _ in range(count)]
    if found and reference and choose.random() < 0.2:
        found[choose.randrange(count)] = reference
    return found


def fill_frame(frame: str, choose: random.Random) -> str:
    """The frame with its nouns, words and small numbers; `{x}` stays."""
    noun = choose.choice(phrases.NOUNS) if choose.random() < 0.7 else phrases.invent_word(choose)
    values = {
        "noun": noun,
        "word": choose.choice(phrases.WORDS),
        "a": str(choose.randint(0, 99)),
        "b": str(choose.randint(0, 99)),
    }
    for name, value in values.items():
        frame = frame.replace(f"{{{name}}}", value)
    return frame


def draw_number(choose: random.Random) -> str:
    """A number of one to six digits, now and then negative or with a fraction."""
    digits = choose.choices((1, 2, 3, 4, 5, 6), (17, 30, 23, 14, 9, 7))[0]
    text = str(choose.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1))
    if digits > 2 and choose.random() < 0.15:  # the same digits again, where copying by the digit before goes astray
        text = text[0] + "".join(choose.choice(text[:2]) for _ in text[1:])
    if digits <= 3 and choose.random() < 0.05:
        text += f".{choose.randint(0, 9)}{choose.choice(('', str(choose.randint(1, 9))))}"
    return f"-{text}" if choose.random() < 0.02 and text != "0" else text


def draw_wrong_number(right: str, choose: random.Random) -> str:
    """Another number: next to the right one, with digits changed, swapped, lost or added, or any."""
    while True:
        wrong = draw_near_number(right, choose) if choose.random() < 0.8 else draw_number(choose)
        if float(wrong) != float(right):
            return wrong


def draw_near_number(right: str, choose: random.Random) -> str:
    """A number that is easily taken for `right`; it may be `right` itself."""
    place = choose.choice([at for at, sign in enumerate(right) if sign.isdigit()])
    how = choose.randrange(8)
    if how in (5, 7):
        return right + choose.choice(("0", right[-1]))
    if how == 6:
        return right[:-1] + str(choose.randint(0, 9))
    if how == 0:
        if "." in right:
            return f"{float(right) + choose.choice((-1, 1)):.{len(right.split('.')[1])}f}"
        return str(abs(int(right) + choose.choice((-10, -2, -1, 1, 2, 10))))
    if how == 1:
        return right[:place] + str(choose.randint(0, 9)) + right[place + 1 :]
    if how == 2:
        return right[:place] + str(choose.randint(0, 9)) + right[place:]
    if how == 3 and len(right) > 1:
        return (right[:place] + right[place + 1 :]).strip(".-") or right
    digits = list(right)
    if place and digits[place - 1].isdigit():
        digits[place - 1], digits[place] = digits[place], digits[place - 1]
    return "".join(digits)


def vary_number_form(said: str, choose: random.Random) -> str:
    """A way of writing the number: in words, with separators, with a unit, or as it is."""
    draw = choose.random()
    if said.isdigit() and int(said) < 1000 and str(int(said)) == said and draw < (0.35 if int(said) < 100 else 0.04):
        words = phrases.spell_number(int(said))
        return words.capitalize() if choose.random() < 0.2 else words
    if said.isdigit() and len(said) > 3 and draw < 0.5:
        return f"{int(said):,}"
    if "." not in said and draw > 0.97:
        return f"{said}.0"
    if draw > 0.82:
        return f"{said}{choose.choice(('', ' '))}{choose.choice(phrases.UNITS)}"
    return said


def make_judging_groups(reader: Reader, lessons: Sequence[JudgeExample], short: bool = False) -> list[Group]:
    """Questions, references and written answers that may be wrong, with the right verdict on each.

    `short` is the form of the first lessons: copying and comparing are learned from few tokens.
    """
    asked = [(shorten_example(messages) if short else messages, verdict) for messages, verdict in lessons]
    return [
        Group(reader.make_prompt(messages), (tuple(reader.chat.encode_response(verdict)),))
        for messages, verdict in asked
    ]


def shorten_example(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """A lesson without the question and without what all lessons share: comparing is learned from half as many
    tokens.
    """
    content = messages[-1]["content"].removesuffix(f"\n{INSTRUCTION}")
    return [{"role": "system", "content": ""}, {"role": "user", "content": content[content.index("<candidate ") :]}]


def collect_judge_texts() -> list[str]:
    """Texts from which a tiny tokenizer learns the words of the judge's prompt and verdicts, and the words of
    numbers.
    """
    frame = "<question> </question>\n<candidate  </candidate >\n<reference> </reference>\n"
    targets = [make_judge_target("5", other, other == "5") for other in ("5", "7", "55", "none", "unsure")]
    spelled = [f"{one} {one} {one.capitalize()} x-{one}" for one in (*phrases.ONES, *phrases.TENS, "hundred", "and")]
    rows = [draw_judge_example(KIND_NAMES, 0, index)[0][1]["content"] for index in range(1000)]
    return [*[JUDGE_SYSTEM, INSTRUCTION, frame, "system", "user", "assistant", *targets, *spelled] * 40, *rows]
