"""Functions that misbehave in every way: each is named and counted, the answers of the others keep their values."""

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from stages.config.own_rewards import Reward
from stages.corpora.rows import Question
from stages.groups.response import Response
from stages.job.failure import Failure
from stages.reward_functions.functions import Calls, RewardFunctions, Values

FAULTS = """
import ctypes, math, os, signal, subprocess, sys, time

def check(answer):
    if answer == "fine":
        return len(answer)
    return getattr(sys.modules[__name__], answer)()

def raises():
    raise ValueError("no\\nunit")
def exits():
    sys.exit(3)
def hangs():
    time.sleep(60)
def hangs_in_c():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None).sleep(60)
def nan():
    return math.nan
def infinite():
    return -math.inf
def text():
    return "1.0"
def many():
    return [1.0]
def unknown():
    return None
def forks():
    os.fork()
    time.sleep(0.2)
    return 1.0
def leaves_a_process():
    subprocess.Popen(["sleep", "60"])
    return 1.0
def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)
def leaves_early():
    os._exit(0)
def closes_its_socket():
    os.closerange(3, 100)
    return 1.0
"""
REASONS = {
    "raises": "raised ValueError: no unit",
    "exits": "raised SystemExit: 3",
    "hangs": "took longer than 2 s",
    "hangs_in_c": "took longer than 2 s",
    "nan": "returned nan",
    "infinite": "returned -inf",
    "text": "returned str, not a number or None",
    "many": "returned list, not a number or None",
    "unknown": "returned None",
    "forks": "left a process running; wait for it before the function returns",
    "leaves_a_process": "left a process running; wait for it before the function returns",
    "is_killed": "its process was killed by signal 9",
    "leaves_early": "ended its process with code 0",
    "closes_its_socket": "ended its process with code 1",
}
Make = Callable[..., RewardFunctions]


def make_question(name: str = "q1", images: tuple[bytes, ...] = ()) -> Question:
    messages = ({"role": "user", "content": "<image>How long?"},)
    return Question(name, images, tuple(map(str, images)), messages, None, "7 cm", "mine", "sum")


def make_row(text: str, finish: str = "stop") -> Response:
    return Response("student", text, (1,), finish, None)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """`make(code, store, **entry)` starts the functions of a file with that code."""
    made = []

    def start(code: str, store: Path | None = None, **entry: Any) -> RewardFunctions:
        (tmp_path / "unit.py").write_text(code)
        given = {"use": "unit.py", "seconds": 2.0, "max_failed_share": 1.0} | entry
        made.append(RewardFunctions([Reward.model_validate(given)], tmp_path, "unit.py", store))
        return made[-1]

    yield start
    for one in made:
        one.close()


def compute(functions: RewardFunctions, *texts: str) -> tuple[list[Values], Calls, list[str]]:
    """Values by text, what became of the calls, and what was said."""
    said: list[str] = []
    functions.put(0, make_question(), [make_row(text) for text in texts])
    values, (calls,) = functions.collect("ril, step 1", said.append)
    return [values[0, place] for place in range(len(texts))], calls, said


@pytest.mark.parametrize("fault", REASONS)
def test_a_fault_is_named_and_counted_and_is_no_number(make: Make, fault: str) -> None:
    values, calls, said = compute(make(FAULTS), "fine", fault, "fine")
    assert values == [(4.0,), (None,), (4.0,)]
    assert (calls.count, dict(calls.failed), calls.examples) == (3, {REASONS[fault]: 1}, {REASONS[fault]: "q1"})
    assert said == [
        "warning: ril, step 1: reward 'check' (unit.py): 1 of 3 calls failed and train nobody: "
        f"1 {REASONS[fault]}, such as on question q1"
    ]


def test_a_fault_is_said_once_and_counted_every_time(make: Make) -> None:
    functions = make(FAULTS)
    assert len(compute(functions, "nan")[2]) == 1
    _, calls, said = compute(functions, "nan", "nan")
    assert (calls.failed.total(), said) == (2, [])
    assert len(compute(functions, "nan", "raises")[2]) == 1


def test_printing_changes_nothing_and_is_said(make: Make) -> None:
    noisy = "import os\ndef check(answer):\n    print('x' * 10**6)\n    os.system('echo below >&2')\n    return 0.5\n"
    values, calls, said = compute(make(noisy), "a", "b")
    assert values == [(0.5,), (0.5,)]
    assert (calls.printed, calls.failed.total()) == (2, 0)
    assert len(said) == 1
    assert said[0].startswith("warning: ril, step 1: reward 'check' (unit.py): 2 of 2 calls printed, such as: xxx")
    assert len(said[0]) < 400


@pytest.mark.parametrize("end", ["return 5.0", "raise ValueError"])
def test_only_the_first_process_answers(make: Make, end: str) -> None:
    """A function that forks, whose child comes back first, and that waits for it."""
    code = f"import os\ndef check(answer):\n    child = os.fork()\n    if child == 0:\n        {end}\n"
    values, calls, _ = compute(make(code + "    os.waitpid(child, 0)\n    return 1.0\n"), "a", "b")
    assert (values, calls.failed.total()) == ([(1.0,), (1.0,)], 0)


def test_nothing_is_left_running(make: Make) -> None:
    before = set(psutil.Process(os.getpid()).children(recursive=True))  # of other tests, such as a Prefect server
    functions = make(FAULTS)
    compute(functions, "leaves_a_process", "hangs", "forks")
    functions.close()
    deadline = time.monotonic() + 5
    while left := set(psutil.Process(os.getpid()).children(recursive=True)) - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_too_many_failures_end_the_stage(make: Make) -> None:
    functions = make(FAULTS, max_failed_share=0.5)
    assert compute(functions, "fine", "nan")[0] == [(4.0,), (None,)]
    with pytest.raises(Failure) as caught:
        compute(functions, "fine", "nan", "raises")
    assert str(caught.value) == (
        "ril, step 1: reward 'check' (unit.py): 2 of 3 calls failed, above max_failed_share = 0.5: "
        "1 returned nan, such as on question q1; 1 raised ValueError: no unit, such as on question q1. "
        "Try it on stored answers: ril rewards try unit.py"
    )


@pytest.mark.parametrize(
    ("code", "entry", "reason"),
    [
        ("def check(:", {}, "unit.py was not loaded: {} cannot be imported: SyntaxError: "),
        ("raise SystemExit(2)", {}, "unit.py was not loaded: {} cannot be imported: SystemExit: 2"),
        ("import os; os._exit(5)", {}, "unit.py was not loaded: its file ended its process with code 5"),
        ("x = 1", {}, "unit.py was not loaded: {} has no function 'check'"),
        ("def check(reply): return 1", {}, "unit.py was not loaded: parameter 'reply' is not given: functions get"),
        ("def check(answer): return 1", {"arguments": {"low": 1}}, "unit.py was not loaded: `arguments` has 'low'"),
    ],
)
def test_a_function_that_cannot_be_loaded_ends_the_stage_at_once(
    make: Make, tmp_path: Path, code: str, entry: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Failure) as caught:
        make(code, **entry)
    assert str(caught.value).startswith("ril.rewards: " + reason.format(tmp_path / "unit.py"))


def test_a_function_takes_what_it_names(make: Make) -> None:
    image = io.BytesIO()
    Image.new("RGB", (3, 2), (255, 0, 0)).save(image, "PNG")
    code = (
        "import json\n"
        "def check(question, reference, answer, finish_reason, images, low, high=2):\n"
        "    assert (question, reference, answer, finish_reason) == ('How long?', '7 cm', 'seven', 'length')\n"
        "    assert [one.size for one in images] == [(3, 2)] and images[0].getpixel((0, 0)) == (255, 0, 0)\n"
        "    return low + high\n"
    )
    functions = make(code, arguments={"low": 0.5})
    functions.put(3, make_question(images=(image.getvalue(),)), [make_row("seven", "length")])
    values, _ = functions.collect("ril", print)
    assert values == {(3, 0): (2.5,)}


def test_a_file_imports_its_neighbours_and_hides_no_library(tmp_path: Path) -> None:
    folder = tmp_path / "rewards"
    folder.mkdir()
    (folder / "json.py").write_text(
        "from json import loads\nfrom units import WEIGHT\ndef check(answer): return WEIGHT\n"
    )
    (folder / "units.py").write_text("WEIGHT = 0.25\n")
    functions = RewardFunctions([Reward(use="rewards/json.py")], tmp_path, "rewards", None)
    assert compute(functions, "a")[0] == [(0.25,)]
    functions.close()


def test_random_numbers_depend_on_the_answer_alone(make: Make) -> None:
    code = "import random, numpy\ndef check(answer):\n    return random.random() + 10 * numpy.random.rand()\n"
    first = compute(make(code), "a", "b")[0]
    assert compute(make(code), "b", "c", "a")[0][::2] == [first[1], first[0]]
    assert first[0] != first[1]


# --- the cache -------------------------------------------------------------------------------------------------------

COUNTING = """
def check(answer):
    with open("calls", "a") as file:
        file.write(answer + "\\n")
    return None if answer == "unknown" else float("nan") if answer == "broken" else {value}
"""


def list_calls(folder: Path) -> list[str]:
    found = sorted((folder / "calls").read_text().split())
    (folder / "calls").unlink()
    return found


def test_values_are_kept_by_code_and_answer_and_failures_are_not(make: Make, tmp_path: Path) -> None:
    store = tmp_path / "store"
    texts = ("a", "b", "unknown", "broken")
    functions = make(COUNTING.format(value=1.0), store)
    assert compute(functions, *texts)[0] == [(1.0,), (1.0,), (None,), (None,)]
    functions.close()
    assert list_calls(tmp_path) == sorted(texts)
    again = make(COUNTING.format(value=1.0), store)
    assert compute(again, *texts, "c")[0] == [(1.0,), (1.0,), (None,), (None,), (1.0,)]
    assert list_calls(tmp_path) == ["broken", "c"]
    again.close()
    changed = make(COUNTING.format(value=2.0), store)
    assert compute(changed, *texts)[0] == [(2.0,), (2.0,), (None,), (None,)]
    assert list_calls(tmp_path) == sorted(texts)
    changed.close()
    with_argument = COUNTING.format(value="low").replace("check(answer)", "check(answer, low=5)")
    for low in (3, 4):
        functions = make(with_argument, store, arguments={"low": low})
        assert compute(functions, "a")[0] == [(float(low),)]
        functions.close()


def test_two_runs_with_one_store_keep_what_both_found(make: Make, tmp_path: Path) -> None:
    store, code = tmp_path / "store", COUNTING.format(value=1.0)
    one, other = make(code, store), make(code, store)
    compute(one, "a")
    compute(other, "b")
    one.close()
    other.close()
    list_calls(tmp_path)
    third = make(code, store)
    assert compute(third, "a", "b")[0] == [(1.0,), (1.0,)]
    assert not (tmp_path / "calls").exists()
