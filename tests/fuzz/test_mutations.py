"""The inputs of the fuzz tests: a function of their seed, different from what they were made of, and of every kind."""

import json
import random
import time

import pytest

from tests.fuzz.mutations import Hang, draw_hostile, dump_json, limit_time, mutate_bytes, mutate_json, nest

DOCUMENT = {"id": "a", "messages": [{"role": "user", "content": "2+2?"}], "images": [], "n": 3}


def test_equal_seeds_make_equal_inputs() -> None:
    for seed in range(200):
        made = [dump_json(mutate_json(DOCUMENT, random.Random(seed)), random.Random(seed)) for _ in range(2)]
        assert made[0] == made[1]
        assert mutate_bytes(b"abcdef" * 9, random.Random(seed)) == mutate_bytes(b"abcdef" * 9, random.Random(seed))


def test_nearly_all_inputs_differ_from_their_origin() -> None:
    original = json.dumps(DOCUMENT)
    same = sum(json.dumps(mutate_json(DOCUMENT, random.Random(seed))) == original for seed in range(500))
    assert same < 25
    assert {type(draw_hostile(random.Random(seed))) for seed in range(300)} >= {str, int, float, bool, list, dict}


def test_the_original_is_left_alone() -> None:
    before = json.dumps(DOCUMENT)
    for seed in range(100):
        mutate_json(DOCUMENT, random.Random(seed))
    assert json.dumps(DOCUMENT) == before


def test_nesting_is_as_deep_as_asked() -> None:
    assert json.dumps(nest(3)) == "[[[0]]]"
    assert json.dumps(nest(2, "a")) == '{"a": {"a": 0}}'


def test_a_time_limit_ends_its_block() -> None:
    with pytest.raises(Hang, match=r"0\.05 s"), limit_time(0.05):
        time.sleep(5)
