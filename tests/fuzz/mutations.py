"""Hostile inputs: values, JSON documents and bytes, each a function of a seed; bounds on what reading one may take.

A fuzz test draws `count()` inputs: 500 by default, as CI runs it; `RIL_FUZZ=20000` is the long form. The seed of an
input is its number, so `RIL_FUZZ_FIRST=1234 RIL_FUZZ=1` repeats one input alone.
"""

import copy
import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

HOSTILE_TEXTS = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "\n",
    "\r",
    "\ud800",  # half of a surrogate pair
    "\udfff tail",
    "\u202eevil\u202c",  # shown from right to left
    "\u2066\u200b\ufeff",
    "e\u0301" * 40,
    "👩‍👩‍👧‍👦" * 50,
    "../../etc/passwd",
    "/proc/self/mem",
    "$(touch fuzz_was_here)",
    "`touch fuzz_was_here`",
    "'; touch fuzz_was_here; '",
    "${item}",
    "{{ ''.__class__ }}",
    "%s%n%d {0} {x.__class__}",
    "<script>document.title='x'</script>",
    "nan",
    "1e999999999",
    "-1e400",
    "9" * 5000,
    "1/0",
    "١٢٣",  # digits, but not ASCII
    "[" * 3000,
    "(" * 3000 + ")" * 3000,
    "a" * 100_000,
    "null",
    "true",
)
HOSTILE_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    10**4000,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
)


def nest(depth: int, key: str | None = None) -> object:
    """A list in a list, or an object in an object under `key`, `depth` times."""
    value: object = 0
    for _ in range(depth):
        value = [value] if key is None else {key: value}
    return value


def draw_hostile(rng: random.Random) -> object:
    """A value of any JSON type that a field with one right type is rarely tested with."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(HOSTILE_TEXTS)
    if kind == 1:
        return rng.choice(HOSTILE_NUMBERS)
    if kind == 2:
        return rng.choice((None, True, False))
    if kind == 3:
        return rng.choice(([], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [1, "a", None, {}]))
    if kind == 4:
        return nest(rng.choice((2, 50, 200)), rng.choice((None, "a")))
    return [draw_hostile(rng) for _ in range(rng.randrange(4))]


def list_places(value: object, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value inside a JSON document, the document itself not included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from list_places(inner, (*place, key))


def mutate_json(document: Any, rng: random.Random) -> Any:
    """A copy of the document with one to three places replaced, removed, doubled, renamed or swapped."""
    changed = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(list_places(changed))
        if not places:
            return draw_hostile(rng)
        *above, key = rng.choice(places)
        holder = changed
        for step in above:
            holder = holder[step]
        action = rng.randrange(8)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        elif action == 1:
            holder[str(rng.choice(HOSTILE_TEXTS))[:200]] = holder.pop(key)
        elif action == 2:
            holder[key] = str(holder[key])
        elif action == 3:
            holder[key] = [holder[key]]
        else:
            holder[key] = draw_hostile(rng)
    return changed


def dump_json(document: object, rng: random.Random) -> bytes:
    """The document as bytes of a JSON file; NaN and half surrogates are kept.

    Now and then it has another encoding, or one value is nested deeper than a recursive parser can go.
    """
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.02:
        text = text.replace(": ", ": " + "[" * 100_000, 1)
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"))
    return text.encode(encoding, "surrogatepass")


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """The content with bytes flipped, cut, doubled, inserted or removed; now and then other content altogether."""
    changed = bytearray(content)
    action = rng.randrange(8)
    at = rng.randrange(len(changed) + 1)
    span = min(len(changed) - at, rng.choice((1, 4, 64, 1024)))
    if action <= 2:
        for _ in range(rng.choice((1, 1, 4, 32))):
            if changed:
                changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif action == 3:
        del changed[at:]
    elif action == 4:
        del changed[at : at + span]
    elif action == 5:
        changed[at:at] = changed[at : at + span]
    elif action == 6:
        changed[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
    else:
        return rng.choice((b"", b"\x00" * 64, b"\xff\xfe", b"PAR1", b"[", b"{}", b"null", rng.randbytes(200)))
    return bytes(changed)


def count(default: int = 500) -> int:
    """How many inputs a fuzz test tries: RIL_FUZZ, else `default`."""
    return int(os.environ.get("RIL_FUZZ", default))


def draw_inputs(default: int = 500) -> Iterator[random.Random]:
    """One generator for each input, seeded with the number of the input."""
    first = int(os.environ.get("RIL_FUZZ_FIRST", 0))
    for number in range(first, first + count(default)):
        yield random.Random(number)


class Hang(BaseException):
    """A block took too long. Not an Exception, so no handler of the code under test takes it for a fault of a file."""


@contextmanager
def limit_time(seconds: float) -> Iterator[None]:
    """Raises Hang in the block when it takes `seconds` of processor time, or ten times as long by the clock.

    A busy machine stalls a process for seconds, so the clock alone says little. Main thread only; code in C is stopped
    when it returns.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise Hang(f"took longer than {seconds} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 10 * seconds))
    before = [signal.signal(number, stop) for number, _, _ in timers]
    for _, timer, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def measure_peak(work: Callable[[], object]) -> int:
    """By how many bytes the peak memory of this process grew while `work` ran."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
