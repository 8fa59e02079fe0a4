"""Endpoints that answer chat completions, and misbehave as they are told."""

from collections.abc import Iterator

import pytest

from tests.faults.endpoint import Fake, listening


@pytest.fixture
def fake() -> Iterator[Fake]:
    """The server's state; `fake.url` is its base address."""
    with listening() as state:
        yield state


@pytest.fixture
def two_fakes() -> Iterator[tuple[Fake, Fake]]:
    """Two servers that answer alike."""
    with listening() as first, listening() as second:
        yield first, second
