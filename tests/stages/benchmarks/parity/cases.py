"""Random and adversarial replies for every rule: the same 20,000 everywhere, from a grammar and fixed seeds.

Plain standard library: the harnesses' environments make the same cases from this file. A case is a JSON object of the
rule's arguments. What a rule is good at makes up most of the cases, so that at least 70 % are parsed; the rest is what
trips rules up.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

CASES = 20_000
Case = dict[str, Any]
WORDS = (
    *(
        "cat",
        "dog",
        "bird",
        "fish",
        "red car",
        "blue",
        "a cat",
        "cats",
        "Paris",
        "the second image",
        "Point B",
        "None",
        "nan",
        "NA",
    ),
    *(
        "12",
        "1.50",
        "3/11",
        "0.5",
        "25%",
        "banana",
        "猫",
        "红色的汽车",
        "a",
        "b",
        "A",
        "x = 3",
        "H2O",
        "(i)",
        "İstanbul",
        "Straße",
    ),
    *(
        "ABOVE",
        "Other",
        "left",
        "right",
        "Building",
        "not visible",
        "$5",
        "1,000",
        "two",
        "all of the above",
        "É",
        "ﬁve",
    ),
)
PROSE = (
    *(
        "The animal in the image is",
        "I think it is",
        "Looking at the chart,",
        "Because of the colour,",
        "DNA is shown.",
        "So",
    ),
    *(
        "I believe",
        "It could be",
        "This is a",
        "A close look shows",
        "In the picture, a",
        "After some thought:",
        "Let me think.",
    ),
    *(
        "Option",
        "the final result",
        "therefore",
        "图中显示",
        "根据图片，",
        "I",
        "E",
        "We see that",
        "Not",
        "Well,",
        "Definitely",
    ),
)
PHRASES = (
    *(
        "The answer is",
        "answer is",
        "The correct answer is",
        "the best answer is",
        "the correct option is",
        "The choice is",
    ),
    *(
        "I choose",
        "I select",
        "I pick",
        "my answer is",
        "My choice is",
        "答案是",
        "答案为",
        "选",
        "정답은",
        "답:",
        "옵션",
        "答えは",
    ),
    *(
        "Answer:",
        "answers:",
        "ANSWER IS",
        "Final answer:",
        "The answer is:",
        "Answers are",
        "answer -",
        "The best option is",
    ),
)
FORMS = (
    *(
        "{}",
        "{}.",
        "({})",
        "{})",
        "{}:",
        "**{}**",
        "[{}]",
        "{},",
        "({}).",
        "{}!",
        "#{}#",
        "{}?",
        "'{}'",
        '"{}"',
        "\\boxed{{{}}}",
    ),
    *(
        "${}$",
        "{}).",
        ":{}",
        "Option {}",
        "{};",
        "<{}>",
        "`{}`",
        " {} ",
        "\n{}\n",
        "{}\t",
        "({}",
        "{} ",
        "{}.)",
        "：{}",
        "（{}）",
    ),
)
ODD = (
    *(
        "",
        " ",
        "\n",
        ".",
        ":",
        "Z",
        "z",
        "(Z)",
        "E",
        "?",
        "none of them",
        "\x00",
        "A\x00",
        "\u3000",
        "\xa0B\xa0",
        "\x1cA",
        "ſ",
        "K",
    ),
    *("Sorry, I can't help with images of people yet.", "I can't process this file.", "Cannot determine the answer"),
    *(
        "I'm sorry, but without the image provided",
        "Failed to obtain answer via API",
        "Failed to obtain answer via API: B",
    ),
    *(
        "ABCD",
        "A B",
        "A and B",
        "either A or C",
        "Thought process:",
        "Let's solve this step by step.",
        "nan",
        "None",
        "Ａ",
        "ａ",
    ),
)


def words(choose: random.Random, low: int, high: int) -> str:
    """Words without option letters, mostly."""
    return " ".join(
        choose.choice(("the", "colour", "is", "seen", "here", "and", "of", "a", "very", "bright", "so", "it"))
        for _ in range(choose.randint(low, high))
    )


def options_of(choose: random.Random, low: int = 2, high: int = 6) -> dict[str, str]:
    """Options with letters; now and then one text is part of another, or a letter."""
    count = choose.randint(low, high)
    texts = choose.sample(WORDS, count)
    if choose.random() < 0.1:
        texts[-1] = texts[0] + choose.choice((" and more", "s", " "))
    return {chr(65 + place): text for place, text in enumerate(texts)}


def letter(choose: random.Random, options: dict[str, str]) -> str:
    """A letter, nearly always of an option."""
    return choose.choice(list(options)) if choose.random() < 0.95 else choose.choice("ABCDEFGHIJZabcd")


def choice_reply(
    choose: random.Random, options: dict[str, str], plain: float = 0.62, easy: tuple[str, ...] = FORMS[:14]
) -> str:
    """A reply to a question with options: `plain` of them name a letter in a form of `easy` and no more."""
    one = letter(choose, options)
    marked = choose.choice(easy if choose.random() < 0.75 else FORMS).format(one)
    kind = choose.random()
    if kind < plain:
        text = options.get(one, "")
        tail = choose.choice(("", "", "", "", ".", "\n", f" {text}", f" {text}.", f": {text}"))
        head = choose.choice(("", "", "", f"{choose.choice(PHRASES)} ", "\n", " "))
        return f"{head}{choose.choice(easy).format(one) if choose.random() < 0.8 else marked}{tail}"
    if kind < plain + 0.1:
        return f"{choose.choice(PHRASES)} {options[choose.choice(list(options))]}{choose.choice(('', '.', '!'))}"
    if kind < plain + 0.2:
        return f"{choose.choice(PROSE)} {words(choose, 0, 8)} {choose.choice(PHRASES)} {marked}"
    if kind < plain + 0.25:
        other = choose.choice(FORMS).format(letter(choose, options))
        return f"{marked} {words(choose, 0, 3)} {other} {choose.choice(('', choose.choice(PROSE)))}"
    if kind < plain + 0.29:
        return f"{words(choose, 1, 12)} {options[choose.choice(list(options))]} {words(choose, 0, 6)}"
    if kind < plain + 0.32:
        said = f"{choose.choice(PHRASES)} {marked}"
        return choose.choice(
            (f"Steps.\nAnswer: {one}", f"Answer: {marked}\nAnswer: {one}", f"<think>{said}</think>{one}")
        )
    if kind < plain + 0.35:
        return choose.choice(ODD)
    pieces = [
        choose.choice(choose.choice((ODD, PROSE, PHRASES, tuple(options.values()))))
        for _ in range(choose.randint(1, 4))
    ]
    return choose.choice((" ", "\n", "")).join([*pieces, choose.choice(FORMS).format(one)])


NUMBERS = (
    "0",
    "1",
    "-3",
    "5",
    "12",
    "100",
    "2014",
    "1.06",
    "0.57",
    "14",
    "1.2",
    "1.45",
    "3.429",
    "1234.5",
    "1e3",
    "0.05",
    "-0.5",
    "7",
)
NUMBER_FORMS = (
    *(
        "{}",
        "{}",
        "{}",
        "{}",
        "{}.",
        " {} ",
        "{}%",
        "${}",
        "{} cm",
        "{}\n",
        "about {}",
        "{}.0",
        "{}0",
        "+{}",
        "{},000",
        "{}e0",
        "{}_0",
    ),
    *(
        "x = {}",
        "The answer is {}",
        "The answer is {}.",
        "It is {} in all",
        "= {}",
        "{} or 6",
        "so {}",
        "- {}",
        "({})",
        "[{}, 2]",
    ),
)


def number(choose: random.Random, near: str | None = None) -> str:
    """A number as text; near another one, when that is given."""
    if near is not None and choose.random() < 0.7:
        try:
            value = float(near.rstrip("%").replace(",", ""))
        except ValueError:
            return near
        factor = choose.choice((1, 1, 1, 1.05, 0.95, 1.0501, 1.01, 0.5, 2, -1))
        text = f"{value * factor:.6g}"
        return choose.choice((near, text, text, str(round(value * factor, 2))))
    return choose.choice(NUMBERS) if choose.random() < 0.7 else f"{choose.uniform(-50, 500):.{choose.randint(0, 4)}f}"


def number_reply(choose: random.Random, gold: str) -> str:
    """A reply with a number, near the reference or not; or none."""
    if choose.random() < 0.06:
        return choose.choice((*ODD, "inf", "nan", "-inf", "1_000", "١٢", "twelve", "1e400", "%", "%%", "5%%", "0x10"))
    form = choose.choice(NUMBER_FORMS[:4] if choose.random() < 0.6 else NUMBER_FORMS)
    return form.format(number(choose, gold))


# --- one maker a rule -----------------------------------------------------------------------------------------------


def vlmeval_choice(choose: random.Random) -> Case:
    options = options_of(choose, 2, 10 if choose.random() < 0.2 else 4)
    return {"options": options, "reply": choice_reply(choose, options)}


def vlmeval_letter(choose: random.Random) -> Case:
    options = options_of(choose, 2, 5)
    return {"options": options, "reply": choice_reply(choose, options, 0.9, FORMS[:7])}


def vlmeval_text(choose: random.Random) -> Case:
    options = options_of(choose, 2, 5)
    one = choose.choice(list(options.values()))
    if choose.random() < 0.85:
        head = choose.choice(("", "It is ", "see ", "OK: "))
        reply = f"{head}{choose.choice((one, one.upper(), one.lower()))}{choose.choice('.! ')}"
        return {"options": options, "reply": reply}
    return {"options": options, "reply": choice_reply(choose, options)}


def relaxed(choose: random.Random) -> Case:
    gold = choose.choice(
        (number(choose), number(choose), f"{number(choose)}%", choose.choice(WORDS), f"[{number(choose)}, 'Blue']")
    )
    if choose.random() < 0.03:
        gold = choose.choice(
            ("[1, 2]", "[]", "['Yes', 'No']", "[1,", "[x]", "0", "0.0", "nan", " [1, 2] ", "0%", "-5%")
        )
    text = choose.choice((gold, gold.lower(), f"{gold} ", gold.upper(), f"{gold}."))
    return {"gold": gold, "reply": number_reply(choose, gold) if choose.random() < 0.7 else text}


def mathvista(choose: random.Random) -> Case:
    options = options_of(choose, 2, 5)
    kind = choose.choices(("multi_choice", "integer", "float", "list", "text"), (6, 3, 2, 0.5, 0.3))[0]
    question = "multi_choice" if kind == "multi_choice" else "free_form"
    gold_letter = choose.choice(list(options))
    gold = options[gold_letter]
    answer = choose.choice(("text", "integer", "float")) if kind == "multi_choice" else kind
    if kind == "integer":
        gold = str(choose.randint(-5, 200))
    if kind == "float":
        gold = f"{choose.uniform(-2, 60):.{choose.randint(1, 2)}f}"
    if kind == "list":
        gold = str([choose.randint(1990, 2020), choose.randint(1990, 2020)])
    if kind == "multi_choice":
        reply = choose.choice((choice_reply(choose, options, 0.75), options[choose.choice(list(options))], gold))
    elif kind in ("integer", "float"):
        reply = gold if choose.random() < 0.7 else number_reply(choose, gold)
    else:
        reply = choose.choice((gold, gold.replace(" ", ""), choose.choice(ODD)))
    precision = choose.choice((1, 2, 1, 2, 1.0, 2.0, None))
    return {
        "question_type": question,
        "answer_type": answer,
        "choices": list(options.values()) if kind == "multi_choice" else [],
        "gold": gold,
        "gold_letter": gold_letter,
        "precision": precision,
        "reply": reply,
    }


def mathvista_quick(choose: random.Random) -> Case:
    case = mathvista(choose)
    if case["question_type"] == "multi_choice" and choose.random() < 0.85:
        case["reply"] = choose.choice(case["choices"])
    if case["answer_type"] in ("list", "text") and case["question_type"] != "multi_choice" and choose.random() < 0.6:
        case.update(answer_type="integer", reply=str(choose.randint(0, 99)))
    return case


def cot(choose: random.Random) -> Case:
    options = options_of(choose, 2, 10)
    one = letter(choose, options)
    if choose.random() < 0.6:
        end = choose.choice(
            (one, f" {one}", f" ({one})", f" {one}. {options.get(one, '')}", " none", "", f" {one} or B", " $A")
        )
        lines = [choose.choice(PROSE), f"{choose.choice(('', '  '))}Answer:{end}"]
        lines += [f"Answer: {one}"] if choose.random() < 0.1 else []
        return {"options": options, "reply": "\n".join(lines)}
    return {"options": options, "reply": choice_reply(choose, options, 0.8)}


def mmmu_tsv(choose: random.Random) -> Case:
    options = options_of(choose, 2, 9)
    if choose.random() < 0.12:
        gold = choose.choice(("5", "C", "1.06", "['24/7', '3.429']", "transistor", "-3", "c"))
        reply = choose.choice((gold, f"The answer is {gold}", "15", "other answers", choose.choice(ODD), "A", "B"))
        return {"options": {}, "gold": gold, "reply": reply}
    return {"options": options, "gold": choose.choice(list(options)), "reply": choice_reply(choose, options, 0.7)}


def circular(choose: random.Random) -> Case:
    texts = list(options_of(choose, 2, 4).values())
    gold = choose.choice(texts)
    rows = []
    for turn in range(len(texts)):
        turned = texts[turn:] + texts[:turn]
        options = {chr(65 + place): text for place, text in enumerate(turned)}
        right = chr(65 + turned.index(gold))
        sure = choose.random() < 0.8
        reply = (
            choose.choice((right, f"({right})", f"{right}. {gold}", f"{right}.", gold))
            if sure
            else choice_reply(choose, options)
        )
        rows.append({"options": options, "gold": right, "reply": reply})
    return {"rows": rows}


def grade(choose: random.Random) -> Case:
    score = choose.choice(("0.0", "0.1", "0.5", "1.0", "1", "0", "0.9", "0.25"))
    if choose.random() < 0.55:
        return {"reply": choose.choice((score, f"{score}\n", f" {score}"))}
    return {
        "reply": choose.choice(
            (
                score,
                score,
                score,
                f"{score}\n",
                f" {score}",
                f"{score} (totally right)",
                f"Correctness: {score}",
                "1.5",
                "-0.1",
                "nan",
                "",
                "one",
                "1e-1",
                f"**{score}**",
                "0.5.",
                "inf",
                f"{score} | ok",
            )
        )
    }


def any_letter(choose: random.Random) -> Case:
    options = options_of(choose, 4, 4)
    return {"reply": choice_reply(choose, options)}


def mmmu(choose: random.Random) -> Case:
    options = options_of(choose, 2, 10)
    reply = choice_reply(choose, options, 0.8, ("{}", "({})", "{}.", "{} ", "{},", "({}).", "{}"))
    if choose.random() < 0.12:
        texts = list(options.values())
        if choose.random() < 0.3:
            return {
                "options": options,
                "reply": " or ".join(f"{letter(choose, options)}. {choose.choice(texts)}" for _ in "12"),
            }
        reply = f"{words(choose, 3, 9)} {choose.choice(texts)} {words(choose, 0, 5)} {choose.choice(texts)}"
    return {"options": options, "reply": reply}


def blink(choose: random.Random) -> Case:
    options = options_of(choose, 2, 5)
    return {
        "letters": "".join(options),
        "reply": choice_reply(choose, options, 0.75, ("{}", "({})", "{}.", "{})", "({}).", "({})")),
    }


def ai2d(choose: random.Random) -> Case:
    options = options_of(choose, 2, 4)
    gold = choose.choice(list(options))
    near = choose.choice(
        (
            gold,
            gold.lower(),
            f"{gold}. x",
            f"({gold})",
            f" {gold}. ",
            f"**{gold}**",
            f"{gold}\n",
            f"{gold}.",
            f"{gold}\x00",
        )
    )
    return {"gold": gold, "reply": near if choose.random() < 0.5 else choice_reply(choose, options)}


def first_character(choose: random.Random) -> Case:
    return ai2d(choose)


def open_answer(choose: random.Random) -> Case:
    gold = choose.choice(
        (
            number(choose),
            choose.choice(WORDS),
            "C",
            "x",
            f"{choose.randint(1, 9)},{choose.randint(100, 999)}",
            "transistor",
        )
    )
    tail = choose.choice((gold, gold.lower(), number(choose, gold), choose.choice(WORDS), f"{gold} or 6", f"{gold}e2"))
    forms = (
        *(
            "{}",
            "The answer is {}.",
            "so {}",
            "thus the final result {}",
            "x = {}",
            "a = b = {}",
            "it could be {} cm",
            "therefore :",
        ),
        *(
            "line one is {}\nline two",
            "is {}. Next is 5",
            "First.\nSecond is\nthe result {}",
            "is .\nanswer {}",
            "{}.",
            "=",
            "is \nis ,",
        ),
    )
    reply = choose.choice(forms).format(tail)
    return {"gold": gold, "reply": reply if choose.random() < 0.93 else choose.choice(ODD)}


def mmbench_group(choose: random.Random) -> Case:
    return circular(choose)


def realworldqa(choose: random.Random) -> Case:
    if choose.random() < 0.6:
        options = options_of(choose, 2, 4)
        gold = choose.choice(list(options))
        return {
            "gold": choose.choice((gold, gold, gold, f" {gold} ", gold.lower())),
            "reply": choice_reply(choose, options),
        }
    gold = choose.choice(("Yes", "No", "0", "3", "Downhill", "north", "E"))
    reply = choose.choice(
        (gold, gold.lower(), f"{gold}.", f" {gold} ", f"{gold}..", "zero", f"{gold}, there is", choose.choice(ODD))
    )
    return {"gold": gold, "reply": reply}


def vision(choose: random.Random) -> Case:
    return ai2d(choose)


def table(choose: random.Random) -> Case:
    """Scored rows with two levels of groups, for averages."""
    subjects = (
        "Art",
        "Design",
        "Music",
        "Accounting",
        "Finance",
        "Biology",
        "Math",
        "History",
        "Pharmacy",
        "Energy_and_Power",
    )
    rows = []
    for _ in range(choose.randint(1, 60)):
        category = choose.choice(subjects)
        rows.append(
            {"category": category, "l2_category": f"{category} {choose.randint(1, 3)}", "score": choose.randint(0, 1)}
        )
    return {"rows": rows}


MAKERS: dict[str, Callable[[random.Random], Case]] = {
    "vlmeval_letter": vlmeval_letter,
    "vlmeval_text": vlmeval_text,
    "vlmeval_choice": vlmeval_choice,
    "vlmeval_relaxed": relaxed,
    "vlmeval_mathvista": mathvista,
    "vlmeval_mathvista_extracted": mathvista,
    "vlmeval_cot": cot,
    "vlmeval_mmmu": mmmu_tsv,
    "vlmeval_circular": circular,
    "vlmeval_grade": grade,
    "lmms_any_letter": any_letter,
    "lmms_mmmu": mmmu,
    "lmms_blink": blink,
    "lmms_ai2d": ai2d,
    "lmms_first_character": first_character,
    "lmms_relaxed": relaxed,
    "lmms_open": open_answer,
    "lmms_mathvista": mathvista,
    "lmms_mathvista_quick": mathvista_quick,
    "lmms_mmbench": mmbench_group,
    "lmms_realworldqa": realworldqa,
    "lmms_vision": vision,
    "lmms_grade": grade,
    "vlmeval_report": table,
    "lmms_mmstar_average": table,
    "lmms_mmmu_average": table,
}
COUNTS = dict.fromkeys(("vlmeval_report", "lmms_mmstar_average", "lmms_mmmu_average"), 1_000)  # averages: fewer do


def cases(rule: str) -> Iterator[Case]:
    """The cases of one rule; each has a seed of its own."""
    for number_of_case in range(COUNTS.get(rule, CASES)):
        yield MAKERS[rule](random.Random(f"{rule} {number_of_case}"))


def digest(made: Iterable[Case]) -> str:
    """Hash of a rule's cases: golden files name it, and say so when the grammar has moved on."""
    found = hashlib.sha256()
    for case in made:
        found.update(json.dumps(case, sort_keys=True).encode())
    return found.hexdigest()
