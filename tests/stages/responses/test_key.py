"""What must change the key of an answer, and what must not."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.job.blocks import Sampling
from stages.responses import Asked, answer_key, request_seed

MESSAGES = [{"role": "user", "content": "<image>What is the sum?"}]
IMAGES = ["ab" * 32]
ASKED = Asked(
    model="hub/model@0123",
    family="qwen2_5_vl",
    precision="bf16",
    context_tokens=4096,
    template="cd" * 32,
    banned=(7, 8),
    sampling=Sampling(),
    draw=0,
)
KEY = answer_key(ASKED.request_key(MESSAGES, IMAGES), 0)

CHANGES: list[tuple[str, Any]] = [
    ("model", "hub/model@4567"),
    ("family", "internvl3"),
    ("precision", "fp32"),
    ("context_tokens", 8192),
    ("template", "ef" * 32),
    ("banned", (7,)),
    ("draw", 1),
    ("sampling", Sampling(temperature=0.5)),
    ("sampling", Sampling(top_p=0.9)),
    ("sampling", Sampling(top_k=50)),
    ("sampling", Sampling(repetition_penalty=1.1)),
    ("sampling", Sampling(max_tokens=16)),
]


@pytest.mark.parametrize(("name", "value"), CHANGES, ids=lambda value: str(value))
def test_settings_that_change_the_key(name: str, value: Any) -> None:
    other = replace(ASKED, **{name: value})
    assert answer_key(other.request_key(MESSAGES, IMAGES), 0) != KEY
    assert other.slug != ASKED.slug


def test_every_setting_of_a_run_is_in_the_table() -> None:
    """A field added to Asked or Sampling must be put into CHANGES: a person decides what it does to the key."""
    assert {name for name, _ in CHANGES} == set(Asked.__dataclass_fields__)
    changed = {
        field for name, value in CHANGES if name == "sampling" for field in value.model_dump() if field in value.model_fields_set
    }
    assert changed == set(Sampling.model_fields)


@pytest.mark.parametrize(
    ("messages", "images", "sample"),
    [
        ([{"role": "user", "content": "<image>What is the product?"}], IMAGES, 0),
        ([{"role": "system", "content": "<image>What is the sum?"}], IMAGES, 0),
        ([{"role": "system", "content": ""}, *MESSAGES], IMAGES, 0),
        (MESSAGES, ["ba" * 32], 0),
        (MESSAGES, [], 0),
        (MESSAGES, IMAGES * 2, 0),
        (MESSAGES, IMAGES, 1),
    ],
)
def test_content_that_changes_the_key(messages: list[dict[str, str]], images: list[str], sample: int) -> None:
    assert answer_key(ASKED.request_key(messages, images), sample) != KEY


def test_what_does_not_change_the_key() -> None:
    """Ids, seeds of experiments, engines and machines are no argument. Order and number types don't count."""
    same = [{"content": "<image>What is the sum?", "role": "user", "extra": "for people"}]
    assert answer_key(ASKED.request_key(same, tuple(IMAGES)), 0) == KEY
    assert replace(ASKED, sampling=Sampling(temperature=1)).request_key(MESSAGES, IMAGES) == ASKED.request_key(MESSAGES, IMAGES)


def test_the_key_is_the_same_for_ever() -> None:
    """Another value here makes every stored answer unfindable: raise VERSION on purpose, or undo the change."""
    assert KEY == "b0b88712567937e905de7f17d86c311b7e92fe72c8289892314c56b4ca14ada5"


@given(st.text(alphabet="0123456789abcdef", min_size=64, max_size=64))
def test_seeds_leave_room_for_samples(request_key: str) -> None:
    assert 0 <= request_seed(request_key) < 2**62


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=8)), max_size=3),
    st.integers(0, 9),
)
def test_two_requests_share_a_key_only_when_they_are_equal(said: list[tuple[str, str]], sample: int) -> None:
    messages = [{"role": role, "content": text} for role, text in said]
    split = [message for message in messages for message in (message, {"role": "user", "content": ""})]
    assert (answer_key(ASKED.request_key(messages, []), sample) == answer_key(ASKED.request_key(split, []), sample)) == (
        messages == split
    )
