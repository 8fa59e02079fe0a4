"""Stored answers to fill stores with."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stages.responses.key import derive_answer_key
from stages.responses.store import Store, StoredAnswer


@pytest.fixture
def stored() -> Callable[..., StoredAnswer]:
    """`stored("r", 0, "text")`: an answer to the request r."""

    def make(name: str, sample: int, text: str, reason: str = "stop") -> StoredAnswer:
        request = hashlib.sha256(name.encode()).hexdigest()
        return StoredAnswer(
            key=derive_answer_key(request, sample),
            request_key=request,
            sample=sample,
            question_id=f"q{name}",
            text=text,
            token_ids=tuple(range(len(text))),
            finish_reason=reason,
            prompt_tokens=5,
            completion_tokens=len(text),
            engine="vllm",
            engine_version="0",
            model="teacher",
            revision="cd",
            seconds=0.5,
        )

    return make


@pytest.fixture
def projected() -> Callable[[Path, Sequence[tuple[str, int]]], dict[str, str]]:
    """Text by key of what a fresh reader gets from a folder; damaged segments are passed over."""

    def read(folder: Path, wanted: Sequence[tuple[str, int]]) -> dict[str, str]:
        return {key: answer.text for key, answer in Store(folder, lambda text: None).fetch(wanted).items()}

    return read
