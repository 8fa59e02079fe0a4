"""New weights on their way to real vLLM servers: each way gives the answers of the engine in process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from stages.config.engines import Vllm, VllmServer
from stages.config.lora import Lora
from stages.config.runtime import Runtime
from stages.engines import weight_sender
from stages.engines.engine import StartOptions
from stages.engines.server_replies import read_answers
from stages.engines.vllm import VllmEngine
from stages.engines.vllm_server import VllmServerEngine
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_network, load_reader
from tests.stages.engines.test_vllm import GREEDY, greedy_by_transformers, ids_of, seeing_requests
from tests.stages.vlm.test_lora import fill

Tiny = Callable[[str], Checkpoint]
Weights = dict[str, torch.Tensor]
LORA = Lora(rank=4, alpha=8.0)  # vLLM knows no rank 4: it makes room for 8


def change_weights(tiny: Tiny, seed: int, family: str = "qwen2_5_vl") -> Weights:
    """The student with every weight changed, the vision tower's too."""
    checkpoint = tiny(family)
    network = load_network(checkpoint, load_reader(checkpoint))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return dict(network.model.state_dict())


@pytest.fixture(scope="module")
def replicas(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServerEngine]:
    """Two servers whose workers receive weights directly."""
    settings = VllmServer(kind="vllm_server", sequences=16, start_seconds=300, replicas=2)
    options, runtime = StartOptions(tmp_path_factory.mktemp("logs")), Runtime(weight_transfer="direct")
    engine = VllmServerEngine(tiny("qwen2_5_vl"), runtime, settings, options, "student", trainable=True)
    yield engine
    engine.close()


@pytest.mark.slow
def test_each_way_gives_every_replica_the_weights(
    tiny: Tiny, replicas: VllmServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through shared memory (workers on the sender's device), over gloo (on another one), and through a file."""
    here = VllmEngine(tiny("qwen2_5_vl"), Runtime(), Vllm(kind="vllm", sequences=16))
    asked = seeing_requests(GREEDY)
    before = ids_of(here, asked)
    weights = replicas._weights
    ways = {"shared memory": replicas.update_weights, "gloo": replicas.update_weights, "file": weights.send_files}
    for seed, (way, send) in enumerate(ways.items(), 1):
        changed = change_weights(tiny, seed)
        here.update_weights(changed.items())
        expected = ids_of(here, asked)
        assert sum(new != old for new, old in zip(expected, before, strict=True)) >= 3
        weights._sender = None
        with monkeypatch.context() as patch:
            patch.setattr(weight_sender, "name_device", lambda device, way=way: "another" if way == "gloo" else "cpu")
            assert send(changed.items()) == sum(one.nbytes for one in changed.values())
        replicas._empty_caches()
        assert weights._sender is None or (weights._sender._group is not None) == (way == "gloo")
        for url in replicas._urls:
            assert ask_one(replicas, url) == expected, (way, url)
        before = expected
    here.close()
    assert not list(replicas._folder.glob("ril-weights-*")), "files are gone when the servers have loaded them"


@pytest.mark.slow
def test_a_server_of_qwen3_vl_answers_and_learns_as_the_engine_in_process(tiny: Tiny, tmp_path: Path) -> None:
    """The weights that add features behind the first layers arrive too, directly and through a file."""
    checkpoint, asked = tiny("qwen3_vl"), seeing_requests(GREEDY)
    here = VllmEngine(checkpoint, Runtime(), Vllm(kind="vllm", sequences=16))
    settings = VllmServer(kind="vllm_server", sequences=16, start_seconds=300)
    options, runtime = StartOptions(tmp_path / "logs"), Runtime(weight_transfer="direct")
    server = VllmServerEngine(checkpoint, runtime, settings, options, "student", trainable=True)
    seen = [ids_of(here, asked)]
    assert ids_of(server, asked) == seen[0]
    for seed, send in enumerate((server.update_weights, server._weights.send_files), 1):
        changed = change_weights(tiny, seed, "qwen3_vl")
        here.update_weights(changed.items())
        assert send(changed.items()) == sum(one.nbytes for one in changed.values())
        server._empty_caches()
        seen.append(ids_of(here, asked))
        assert sum(new != old for new, old in zip(seen[-1], seen[-2], strict=True)) >= 3
        assert ids_of(server, asked) == seen[-1]
    server.close()
    here.close()


def ask_one(engine: VllmServerEngine, url: str) -> list[list[tuple[int, ...]]]:
    """The ids that the server at `url` answers."""
    found = []
    for request in seeing_requests(GREEDY):
        reply = engine._ask(url, "POST", "/inference/v1/generate", engine._make_body(request))
        found.append([answer.token_ids for answer in read_answers(request, engine.chat, reply.json())])
    return found


@pytest.mark.slow
def test_a_server_applies_the_adapter_that_it_was_sent(tiny: Tiny, tmp_path: Path) -> None:
    """Greedy tokens are those of transformers with the adapter, for each of two adapters; few bytes are sent."""
    checkpoint, asked = tiny("qwen2_5_vl"), seeing_requests(GREEDY)
    settings = VllmServer(kind="vllm_server", sequences=16, start_seconds=300)
    options = StartOptions(tmp_path / "logs", adapter_rank=LORA.rank)
    runtime = Runtime(weight_transfer="adapter")
    engine = VllmServerEngine(checkpoint, runtime, settings, options, "student", trainable=True)
    network = load_network(checkpoint, load_reader(checkpoint)).add_adapter("student", LORA, seed=1)
    seen = [greedy_by_transformers(checkpoint, asked)]
    assert ids_of(engine, asked) == seen[0]
    for seed in (2, 3):
        state = fill(network, seed, spread=0.2)
        size = sum(one.nbytes for one in state.values())
        sent = engine.update_adapter(lambda folder, state=state: network.save_adapter(state, folder, "base"), size)
        assert size < sent < size + 100_000  # names of tensors and the configuration
        seen.append(greedy_by_transformers(checkpoint, asked, network.model))
        assert sum(ours != theirs for ours, theirs in zip(seen[-1], seen[-2], strict=True)) >= 3
        assert ids_of(engine, asked) == seen[-1]
    assert len(list(engine._folder.glob("ril-weights-*"))) == 1, "only the adapter that is served"
    left = next(engine._folder.glob("ril-weights-*")).resolve()
    engine.close()
    assert not left.exists()
