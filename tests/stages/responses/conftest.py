"""Stored answers to fill stores with."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stages.responses import Store, StoredAnswer, answer_key


@pytest.fixture
def stored() -> Callable[..., StoredAnswer]:
    """`stored("r", 0, "text")`: an answer to the request r."""

    def make(request: str, sample: int, text: str, reason: str = "stop") -> StoredAnswer:
        return StoredAnswer(
            key=answer_key(request, sample),
            request_key=request,
            sample=sample,
            question_id=f"q{request}",
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
def projected() -> Callable[[Path, Sequence[str]], dict[str, str]]:
    """Text by key of what a fresh reader gets from a folder; damaged segments are passed over."""

    def read(folder: Path, keys: Sequence[str]) -> dict[str, str]:
        return {key: answer.text for key, answer in Store(folder, lambda text: None).fetch(keys).items()}

    return read
