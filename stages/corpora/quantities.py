"""Numbers with units in texts that anybody may have written: "12 cm", "$5", "1.2 million people", "50 percent"."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from stages.corpora.numbers import find_numbers

MOST_NUMBERS = 64  # of a text, the last ones
LONGEST_QUANTITY = 80  # characters of a reference, and behind a number
LONGEST_END = 8000  # characters
SHORTEST_NOUN = 3
_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "millions": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "k": 10**3,
    "mn": 10**6,
    "bn": 10**9,
    "tn": 10**12,
}
# Names of units, their dimension, and how many of the dimension's first unit they are.
_TABLE = (
    ("mm millimeter millimeters millimetre millimetres", "length", "0.001"),
    ("cm centimeter centimeters centimetre centimetres", "length", "0.01"),
    ("m meter meters metre metres", "length", "1"),
    ("km kilometer kilometers kilometre kilometres", "length", "1000"),
    ("inch inches in ″", "length", "0.0254"),
    ("ft foot feet ′", "length", "0.3048"),
    ("yd yard yards", "length", "0.9144"),
    ("mi mile miles", "length", "1609.344"),
    ("mg milligram milligrams", "mass", "0.000001"),
    ("g gram grams gramme grammes", "mass", "0.001"),
    ("kg kgs kilogram kilograms kilo kilos", "mass", "1"),
    ("tonne tonnes", "mass", "1000"),
    ("lb lbs pound pounds", "mass", "0.45359237"),
    ("oz ounce ounces", "mass", "0.028349523125"),
    ("ms millisecond milliseconds", "time", "0.001"),
    ("s sec secs second seconds", "time", "1"),
    ("min mins minute minutes", "time", "60"),
    ("h hr hrs hour hours", "time", "3600"),
    ("day days", "time", "86400"),
    ("week weeks", "time", "604800"),
    ("month months", "months", "1"),
    ("year years yr yrs", "months", "12"),
    ("ml milliliter milliliters millilitre millilitres", "volume", "0.001"),
    ("cl centiliter centiliters centilitre centilitres", "volume", "0.01"),
    ("l liter liters litre litres", "volume", "1"),
    ("cm² cm2", "area", "0.0001"),
    ("m² m2", "area", "1"),
    ("km² km2", "area", "1000000"),
    ("$ dollar dollars usd us$", "dollars", "1"),
    ("cent cents", "dollars", "0.01"),
    ("€ euro euros eur", "euros", "1"),
    ("£ gbp", "pounds sterling", "1"),
    ("¥ yen jpy", "yen", "1"),
    ("% percent percentage pct", "per cent", "1"),
    ("° degree degrees", "degrees", "1"),
    ("°c celsius ℃", "degrees Celsius", "1"),
    ("°f fahrenheit ℉", "degrees Fahrenheit", "1"),
    ("km/h kmh kph", "kilometres an hour", "1"),
    ("mph", "miles an hour", "1"),
    ("m/s", "metres a second", "1"),
    ("kcal calories calorie", "kilocalories", "1"),
    ("kwh", "kilowatt hours", "1"),
)
UNITS = {name: (dimension, Fraction(factor)) for names, dimension, factor in _TABLE for name in names.split()}
# Two words that are one unit.
_PAIRS = (
    (re.compile(r"(?:degrees?|°)\s*(?:celsius|c)\b", re.I), "°c"),
    (re.compile(r"(?:degrees?|°)\s*(?:fahrenheit|f)\b", re.I), "°f"),
    (re.compile(r"per\s?cent\b", re.I), "%"),
    (re.compile(r"(?:square|sq\.?)\s*(?:meters?|metres?|m)\b", re.I), "m²"),
    (re.compile(r"(?:square|sq\.?)\s*(?:kilometers?|kilometres?|km)\b", re.I), "km²"),
    (re.compile(r"(?:kilomet(?:er|re)s?|km)\s*(?:per|an)\s*hour\b", re.I), "km/h"),
    (re.compile(r"miles?\s*(?:per|an)\s*hour\b", re.I), "mph"),
)
_WORD = re.compile(r"[%°$€£¥℃℉′″][A-Za-z]?|[^\W\d_]+(?:/[^\W\d_]+|[²³23](?!\d))?")
_CURRENCY = "$€£¥"
_DIGIT = re.compile(r"\d")
_NOT_IN_NUMBER = re.compile(r"[^\w.,/]")
_UNIT_NAME = re.compile(r"[%°$€£¥℃℉]|[^\W\d_]+(?:/[^\W\d_]+)?[²³]?")
_CONTENT_WORD = re.compile(r"[^\W\d_]{3,}")
_NO_UNITS = frozenset(
    ("in", "second", "min", "yards", "yard", "foot", "feet", "a", "s", "m", "l", "t")
)  # in a question
_NO_NOUNS = (
    "a an and are as at but by for from has have he here if i in is it not of on or out so than that the their then "
    "there these they this those to total was were which while with altogether visible shown seen because since "
    "minus plus times equals pm am"
)
_STOP_WORDS = frozenset(_NO_NOUNS.split())


@dataclass(frozen=True)
class Quantity:
    """A number, with what stands behind it."""

    value: Fraction  # with its scale ("5 million"), in its own unit
    unit: str = ""  # the dimension of a known unit, "" without one
    factor: Fraction = Fraction(1)
    noun: str = ""  # the word behind it that is no known unit: what is counted
    digits: int = 0  # behind the point, as written
    start: int = 0
    end: int = 0  # with scale, unit and noun

    @property
    def base(self) -> Fraction:
        """The value in the first unit of its dimension."""
        return self.value * self.factor


def read_quantity(text: str) -> Quantity | None:
    """Returns the quantity that is the whole of `text`, with at most one noun; None otherwise."""
    plain = text.strip().strip("*_").removesuffix(".").strip()
    if len(plain) > LONGEST_QUANTITY:
        return None
    found = find_quantities(plain)
    if len(found) != 1:
        return None
    (one,) = found
    before = plain[: one.start].strip(" -+−~≈")
    behind = plain[one.end :].strip(" .,;:%°)")
    return one if not before.strip(_CURRENCY) and not behind else None


def find_quantities(text: str) -> list[Quantity]:
    """Returns the last MOST_NUMBERS quantities of a text, in order; of a long one those near its end, if there are any.

    Its numbers are looked for in the last LONGEST_END characters first.
    """
    if _DIGIT.search(text) is None:
        return []
    cut = _NOT_IN_NUMBER.search(text, len(text) - LONGEST_END) if len(text) > LONGEST_END else None
    for start in (cut.start(), 0) if cut else (0,):
        end = text[start:]
        if found := [_read_around(end, *one) for one in find_numbers(end, MOST_NUMBERS)]:
            return [replace(one, start=one.start + start, end=one.end + start) for one in found] if start else found
    return []


def _read_around(text: str, value: Fraction, digits: int, start: int, end: int) -> Quantity:
    """Returns the quantity of a number, with the sign of currency before it and scale, unit, noun behind it."""
    behind = text[end : end + LONGEST_QUANTITY]
    currency = next((sign for sign in text[max(0, start - 1) : start + 2] if sign in _CURRENCY), "")
    place = 0
    word = _next_word(behind, place)
    if word is not None and (scale := _find_scale(word, currency)):
        value, digits, place = value * scale, 0, word[2]
        word = _next_word(behind, place)
    bare = Quantity(value, digits=digits, start=start, end=end + place)
    gap = place + len(behind[place:]) - len(behind[place:].lstrip(" -"))
    pair = next(((found, name) for pattern, name in _PAIRS if (found := pattern.match(behind, gap))), None)
    if currency:
        doubled = word is not None and word[0] in UNITS and UNITS[word[0]][0] == UNITS[currency][0]
        return _with_unit(bare, currency, end + word[2] if word is not None and doubled else bare.end)
    if pair is not None:
        return _with_unit(bare, pair[1], end + pair[0].end())
    if word is None:
        return bare
    name = word[0]
    if name in UNITS and (name != "in" or not behind[word[2] :].strip(" .,;:!?)")):
        return _with_unit(bare, name, end + word[2])
    if len(name) < SHORTEST_NOUN or name in _STOP_WORDS:
        return bare
    return replace(bare, noun=name, end=end + word[2])


def _find_scale(word: tuple[str, int, int], currency: str) -> int | None:
    """Returns what a word behind a number multiplies it with; "m" and "b" do so behind an amount of money only."""
    name, gap, _ = word
    if currency and gap == 0 and name in ("m", "b"):
        return _SCALES[f"{name}n"]
    close = gap == 0 or len(name) >= SHORTEST_NOUN or name in ("mn", "bn")
    return _SCALES.get(name) if close else None


def _with_unit(quantity: Quantity, name: str, end: int) -> Quantity:
    dimension, factor = UNITS[name]
    return replace(quantity, unit=dimension, factor=factor, end=end)


def _next_word(text: str, place: int) -> tuple[str, int, int] | None:
    """Returns the word behind `place`, the blanks before it, and where it ends; None if a sign is between."""
    gap = 0
    while place + gap < len(text) and gap < 2 and text[place + gap] in " -\u00a0":
        gap += 1
    found = _WORD.match(text, place + gap)
    return None if found is None else (found.group().casefold(), gap, found.end())


def find_units(text: str) -> dict[str, Fraction]:
    """Returns the units that a text names: factor by dimension, of several of a dimension the last."""
    words = _UNIT_NAME.findall(text.casefold())
    named = [name for pattern, name in _PAIRS if pattern.search(text)]
    return {UNITS[name][0]: UNITS[name][1] for name in (*words, *named) if name in UNITS and name not in _NO_UNITS}


def names_one_of(words: str, text: str) -> bool:
    """Returns whether `text` has one of the content words of `words`, but for a plural ending."""
    wanted = {_cut_plural(word) for word in _CONTENT_WORD.findall(words.casefold())} - _STOP_WORDS
    return any(_cut_plural(word) in wanted for word in _CONTENT_WORD.findall(text.casefold()))


def has_same_stem(one: str, other: str) -> bool:
    """Returns whether two words differ at most in a plural ending."""
    return _cut_plural(one) == _cut_plural(other)


def _cut_plural(word: str) -> str:
    if word in ("people", "persons"):
        return "person"
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "xes", "ses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


_BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_BY_TEN = "twenty thirty forty fifty sixty seventy eighty ninety"
_ONES = {word: value for value, word in enumerate(_BELOW_TWENTY.split())}
_TENS = {word: 20 + 10 * place for place, word in enumerate(_BY_TEN.split())}
_NUMBER_WORD = re.compile(
    rf"\b(?:({'|'.join(_TENS)})(?:[-\s]({'|'.join(list(_ONES)[1:10])}))?|({'|'.join(_ONES)}))\b"
    r"(?!\s+(?:of|hundred|thousand|million|billion|dozen|point|half|third|quarter|and a)\b|-\w)",
    re.IGNORECASE,
)


def find_number_words(text: str) -> list[int]:
    """Returns the numbers below 100 that a text has in words, the first and the last ones of a long text.

    Parts of a larger number ("two hundred", "one of") are none.
    """
    values = []
    for found in _NUMBER_WORD.finditer(text[:2000] + " " + text[-2000:] if len(text) > 4000 else text):
        ten, one, alone = (word.casefold() if word else "" for word in found.groups())
        values.append(_ONES[alone] if alone else _TENS[ten] + _ONES.get(one, 0))
    return values
