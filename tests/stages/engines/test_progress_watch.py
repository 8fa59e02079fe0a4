"""A vLLM server with open requests whose counters stand still is ended; a busy and an idle one are not."""

import time
from collections.abc import Callable

import httpx
import pytest

from stages.engines.progress_watch import ProgressWatch, read_counters

PAGE = """# HELP vllm:generation_tokens_total Number of generation tokens processed.
vllm:prompt_tokens_total{engine="0",model_name="judge"} 12.0
vllm:generation_tokens_total{engine="0",model_name="judge"} COUNT
vllm:generation_tokens_created{engine="0",model_name="judge"} 1.7e+09
"""


def serve(answer: Callable[[], str]) -> Callable[[], httpx.Client]:
    """Clients of a server whose page of metrics is `answer()`."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=answer()))
    return lambda: httpx.Client(transport=transport, base_url="http://server")


def refuse() -> str:
    raise httpx.ReadTimeout("no reply")


def watch(answer: Callable[[], str], open_requests: int, seconds: float) -> list[tuple[int, str]]:
    """What is ended in that time, with a limit of 0.4 s."""
    ended: list[tuple[int, str]] = []
    watching = ProgressWatch([serve(answer)], lambda: [open_requests], 0.4, lambda *found: ended.append(found))
    end = time.monotonic() + seconds
    while time.monotonic() < end and not ended:
        time.sleep(0.05)
    watching.close()
    return ended


def growing() -> Callable[[], str]:
    count = iter(range(10**6))
    return lambda: PAGE.replace("COUNT", str(float(next(count))))


def test_counters_are_read() -> None:
    with serve(lambda: PAGE.replace("COUNT", "34.0"))() as client:
        assert read_counters(client) == ("12.0", "34.0")


def test_a_server_that_stands_still_is_ended() -> None:
    ((place, reason),) = watch(lambda: PAGE.replace("COUNT", "34.0"), 3, 20)
    assert place == 0
    assert reason.startswith("the server has 3 open requests and has processed no token for ")


def test_a_server_that_stops_to_answer_is_ended() -> None:
    pages = iter([PAGE.replace("COUNT", "34.0")])
    assert watch(lambda: next(pages, None) or refuse(), 3, 20)


@pytest.mark.parametrize(
    ("answer", "open_requests"),
    [(growing(), 3), (lambda: PAGE.replace("COUNT", "34.0"), 0), (lambda: "# no counters", 3), (refuse, 3)],
    ids=["working", "idle", "without counters", "never seen"],
)
def test_other_servers_are_left_alone(answer: Callable[[], str], open_requests: int) -> None:
    assert not watch(answer, open_requests, 1.5)
