"""Words that a tiny judge's lessons are put together from: questions, ways of saying an answer, prose around it.

The labelled cases that judges are measured on (`exam.py`) use none of these frames; a test compares them. Half of all
frames and nearly all prose are made of words drawn at random: where the answer stands has to be learned, not what is
written around it.
"""

import random
from collections.abc import Sequence


def split_text(words: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(words.split())


QUESTIONS = (
    "How many are there?",
    "What is the number?",
    "What does the picture show?",
    "Give the value.",
    "What is {a} plus {b}?",
    "How many of the {a} {noun} are {word}?",
    "Which {noun} is {word}?",
    "What is written on the {noun}?",
    "How long is the {noun}?",
    "Count the {noun}.",
    "Read the {noun} and say what it gives for {a}.",
    "What comes after {a}?",
)

# The answer stands last, or nothing with another number follows.
FRAMES = (
    "{x}",
    "{x}.",
    "Answer: {x}",
    "Answer: {x}.",
    "answer {x}",
    "The answer is {x}.",
    "The answer: {x}",
    "the answer is {x}",
    "so {x}.",
    "So it is {x}.",
    "so the answer is {x}",
    "It is {x}.",
    "It's {x}.",
    "I get {x}.",
    "I see {x}.",
    "That makes {x}.",
    "That gives {x}",
    "This is {x}.",
    "We have {x}.",
    "Result: {x}",
    "The result is {x}.",
    "Total: {x}",
    "The total is {x}",
    "the number is {x}.",
    "Number: {x}",
    "There are {x}.",
    "There are {x} {noun}.",
    "You can count {x} {noun}.",
    "The {noun} shows {x}.",
    "The {noun} is {x}.",
    "{noun}: {x}",
    "{noun} = {x}",
    "= {x}",
    "-> {x}",
    "=> {x}",
    "I think {x}",
    "Therefore {x}.",
    "Hence the value is {x}.",
    "Value: {x}",
    "must be {x}",
    "{x} {noun}",
    "{x}, I think.",
    "{x} is the answer.",
    "{x} is right.",
    "{x} it is",
    "I say {x} {noun}.",
    "{x}, because of the {noun}.",
    "Final: {x}",
    "Final answer: {x}",
    "The final result is {x}",
)

# After these the answer is clear, so that anything may follow, other numbers included.
FIRM = (
    "Answer: {x}.",
    "The answer is {x}.",
    "Final answer: {x}.",
    "The result is {x}.",
    "answer {x},",
    "Result: {x};",
    "So the answer is {x}.",
    "Total: {x}.",
    "My answer is {x}.",
    "I answer {x}.",
    "The final answer is {x},",
    "The total is {x}.",
    "The answer must be {x},",
    "{x} is the answer.",
    "{x} is my answer,",
)

WRAPS = (
    "{x}",
    "**{x}**",
    '"{x}"',
    "({x})",
    "${x}$",
    "'{x}'",
    "*{x}*",
    "{x}!",
    "{{x}}",
    "~{x}~",
    "_{x}_",
    "|{x}|",
    "{x};",
)
UNITS = (
    "cm",
    "kg",
    "m",
    "s",
    "%",
    "km",
    "euros",
    "points",
    "pieces",
    "hours",
    "g",
    "years",
    "°C",
    "mm",
    "days",
    "people",
)

UNSURE = ("{x} or {y}", "either {x} or {y}", "{x} and {y}", "{x}, maybe {y}", "{x}. Or {y}.", "{x}/{y}", "{x}, {y}")
NO_ANSWERS = (
    "I can't tell.",
    "No idea",
    "It is hard to see.",
    "unknown",
    "The {noun} is {word}.",
    "I do not know the {noun}.",
    "Sorry, I see no {noun}.",
    "?",
    "the",
    "so",
)

NOUNS = split_text(
    "apples bars birds books boxes bridges buttons cars cats chairs clocks coins cups digits dogs doors eggs "
    "fields fish flags "
    "flowers forks gardens hats houses keys lamps leaves letters lines maps marks numbers pages pens plates "
    "rivers roads rooms "
    "rows ships shoes signs spoons stars stones tables tickets trains trees walls wheels windows"
)
WORDS = split_text(
    "red blue green white black yellow small large long short old new left right upper lower first last open "
    "closed round flat "
    "warm cold fast slow early late high low north south east west Monday Friday May July yes no true false "
    "summer winter wood "
    "iron paper glass cat dog horse bread water milk salt sugar Rome Paris gold silver"
)
SALAD = split_text(
    "the a of and to in is it that was for on are as with at be this have from or had by but not what all were "
    "we when your can "
    "there use an each which she do how their if will up about out many then them these some her would make like "
    "him into time "
    "has look more go see way could people than been call who now find down did get come made may part over take "
    "only little "
    "work know place year live back give most very after thing our just name good sentence man think say great "
    "where help "
    "through much before line mean any same tell follow came want show also around form small set put end does another "
    "well large must big even such because turn here why ask went men read need land different home us move try "
    "kind hand "
    "picture again change off play spell air away animal house point page mother answer found study still learn "
    "should world"
)
COUNTING = ("one", "first", "second", "two", "last", "once", "both", "third", "many")
SIGNS = ("#", "##", "*", "=>", "->", "--", "•", "–", "—", "…", "→", "€", "£", "...", ">>", "§", "|", "~", "×")
_ONSETS = split_text("b c d f g h j k l m n p r s t v w z br cl dr fl gr pl pr sh sk sl st th tr")
_VOWELS = split_text("a e i o u ai ea oo ou y")
_CODAS = ("", "", "", *split_text("n r s t l m nd rk st ng ck"))

ONES = split_text(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen "
    "nineteen"
)
TENS = split_text("twenty thirty forty fifty sixty seventy eighty ninety")


def spell_number(number: int) -> str:
    """0 to 999 in English words: "twenty-eight", "three hundred and five"."""
    if number >= 100:
        rest = f" and {spell_number(number % 100)}" if number % 100 else ""
        return f"{ONES[number // 100]} hundred{rest}"
    if number < 20:
        return ONES[number]
    tens = TENS[number // 10 - 2]
    return f"{tens}-{ONES[number % 10]}" if number % 10 else tens


def invent_word(choose: random.Random) -> str:
    """A word of one to three syllables that need not exist."""
    return "".join(
        choose.choice(_ONSETS) + choose.choice(_VOWELS) + choose.choice(_CODAS)
        for _ in range(choose.choice((1, 2, 2, 3)))
    )


def draw_word(choose: random.Random) -> str:
    """A common word or, in a third of all cases, an invented one; now and then one that speaks of numbers and gives
    none.
    """
    if choose.random() < 0.03:
        return choose.choice(COUNTING)
    return choose.choice(SALAD) if choose.random() < 0.65 else invent_word(choose)


def draw_words(choose: random.Random, fewest: int, most: int) -> list[str]:
    """So many words without sense."""
    return [draw_word(choose) for _ in range(choose.randint(fewest, most))]


def capitalise_start(text: str, choose: random.Random) -> str:
    """The text with a capital at its beginning, mostly; now and then all of it in capitals."""
    draw = choose.random()
    return text[:1].upper() + text[1:] if draw < 0.65 else text.upper().replace("{X}", "{x}") if draw < 0.7 else text


def draw_prose(choose: random.Random, numbers: Sequence[str] = (), inside: bool = False) -> str:
    """Words without sense as a sentence or a piece of one, with `numbers` among them; `inside`: none of them first or
    last.
    """
    said = draw_words(choose, 2, 7)
    if choose.random() < 0.15:
        said[-1] = choose.choice(SIGNS)
    for one in numbers:
        said.insert(choose.randint(1, len(said) - 1) if inside else choose.randint(0, len(said)), one)
    if choose.random() < 0.2:
        place = choose.randrange(len(said) - 1)
        said[place] += choose.choice((",", ";", " -", ")")) if not said[place][-1].isdigit() else ","
    return capitalise_start(" ".join(said), choose) + choose.choice((".", ".", ".", ",", ";", "!", "?", ""))


def draw_listing(choose: random.Random, numbers: Sequence[str]) -> str:
    """Numbers in a row, as values that are read out or calculated with."""
    head = choose.choice(
        ("", f"{draw_word(choose)}: ", f"{draw_word(choose)} ", f"{' '.join(draw_words(choose, 1, 3))} ")
    )
    if choose.random() < 0.5:
        return (
            capitalise_start(head, choose)
            + choose.choice((", ", " ", ",", " / ", " and ")).join(numbers)
            + choose.choice((".", ";", ""))
        )
    sign = choose.choice(("+", "-", "*", " x ", " * ", " - ", " plus ", " times ", " minus "))
    equals = choose.choice(("=", " = ", " is ", " -> ", " makes "))
    pairs = [f"{one}{sign}{other}{equals}{result}" for one, other, result in zip(*[iter(numbers)] * 3, strict=False)]
    return (
        capitalise_start(head, choose)
        + choose.choice((", ", ". ", "\n", "; then ")).join(pairs)
        + choose.choice((".", ";", "\n", ""))
    )


def make_frame(choose: random.Random) -> tuple[str, bool]:
    """A frame of words without sense, and whether it says plainly that the answer stands there, as "word: {x}."
    does.
    """
    draw = choose.random()
    if draw < 0.3:
        return capitalise_start(f"{' '.join(draw_words(choose, 1, 6))} {{x}}", choose) + choose.choice(
            (".", ".", ".", "", "!", ",")
        ), False
    if draw < 0.53:
        joint = choose.choice((" ", " ", " ", ", ", " - "))
        return f"{{x}}{joint}{' '.join(draw_words(choose, 1, 5))}" + choose.choice((".", ".", "")), False
    if draw < 0.68:
        return capitalise_start(
            f"{' '.join(draw_words(choose, 1, 4))} {{x}} {' '.join(draw_words(choose, 1, 3))}", choose
        ) + ".", False
    if draw < 0.76:
        return (
            f"{capitalise_start(' '.join(draw_words(choose, 1, 3)), choose)}, "
            f"{{x}}{choose.choice(('.', '.', '', '!'))}",
            False,
        )
    if draw < 0.82:
        return f"{choose.choice(SIGNS)} {{x}}{choose.choice(('', '.'))}", False
    head = capitalise_start(" ".join(draw_words(choose, 1, 2)), choose)
    return f"{head}{choose.choice((': ', ': ', ' = ', ':'))}{{x}}.", True


def make_wrap(choose: random.Random) -> str:
    """Signs and markup around `{x}`."""
    sign = choose.choice(("*", "~", "|", "$", "'", '"', "#", "^", "/", "%", "==", "::", "$$", "~~"))
    opening, closing = choose.choice(
        ((sign, sign), (sign, sign), ("(", ")"), ("{", "}"), ("«", "»"), (f"{sign}(", f"){sign}"))
    )
    if choose.random() < 0.3:
        opening += f"\\{invent_word(choose)}{{"
        closing = "}" + closing
    elif choose.random() < 0.15:
        name = invent_word(choose)
        opening, closing = f"({name}){opening}", f"{closing}(/{name})"
    return f"{opening}{{x}}{closing}"
