"""Real vLLM servers on tiny checkpoints: the answers of the engine in process, new weights, and nobody left behind.

Two servers are started for the whole file: one by a stage of its own that is killed at the end (InternVL3, on a TCP
port, so that others can use it too), one by this process (Qwen2.5-VL, on a Unix socket, with weights that can be
replaced).
"""

import base64
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from stages.config.engines import OpenAi, Vllm, VllmServer
from stages.config.image_limits import ImageLimits
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.corpora.images import open_image
from stages.engines.arguments import make_data_url
from stages.engines.endpoint_engine import EndpointEngine
from stages.engines.engine import Answer, EngineError, Request, RequestError, StartOptions
from stages.engines.supervisor import list_descendants
from stages.engines.vllm import VllmEngine
from stages.engines.vllm_server import VllmServerEngine
from stages.job.files import read_json, write_json
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card
from stages.vlm.reader import load_network, load_reader
from tests.living import is_alive

KEY = "a key that other users of the machine do not know"
Tiny = Callable[[str], Checkpoint]
GREEDY = Sampling(temperature=0.0, max_tokens=24)
WARM = Sampling(temperature=1.0, top_p=0.95, top_k=50, max_tokens=24)
STAGE = """
import sys
from flows.environment import prepare
prepare()
from pathlib import Path
from stages.engines.engine import StartOptions
from stages.engines.vllm_server import VllmServerEngine
from stages.config.engines import VllmServer
from stages.config.runtime import Runtime
from stages.vlm.checkpoint import open_checkpoint
settings = VllmServer(kind="vllm_server", sequences=16, port=int(sys.argv[2]), start_seconds=300)
options = StartOptions(Path(sys.argv[3]))
engine = VllmServerEngine(open_checkpoint(Path(sys.argv[1])), Runtime(), settings, options, "internvl3")
print("ready", flush=True)
sys.stdin.read()  # until the tests end, however they do
"""


def picture(seed: int, width: int = 84, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (84, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    made = Image.fromarray(pixels)
    (made.convert(mode) if mode else made).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int, depth: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(depth).max, shape, dtype=depth)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    return encoded(noise(8, 12, 3), "JPEG", exif=exif)


PICTURES: dict[str, Callable[[], bytes]] = {
    "plain": lambda: encoded(noise(8, 12, 3)),
    "turned": turned,
    "transparent": lambda: encoded(noise(8, 12, 4)),
    "transparent palette": lambda: encoded(noise(8, 12, 4), "GIF", "P", transparency=3),
    "cmyk": lambda: encoded(noise(8, 12, 3), "JPEG", "CMYK"),
    "16 bit": lambda: encoded(noise(8, 12, depth=np.uint16)),
    "grey": lambda: encoded(noise(8, 12)),
    "one bit": lambda: encoded(noise(8, 12), mode="1"),
    "photo": lambda: encoded(noise(8, 12, 3), "JPEG"),
    "webp": lambda: encoded(noise(8, 12, 3), "WEBP"),
}


def seeing_requests(sampling: Sampling, n: int = 1, count: int = 6, plain: bool = False) -> list[Request]:
    text = "<image>What is the sum of the digits?" + ("" if plain else " <|im_end|> <image>")
    return [
        Request(
            f"q{i}",
            [{"role": "user", "content": f"{text} {i}"}],
            [picture(i, 84 + 28 * (i % 2), "JPEG" if i % 3 == 2 else "PNG")],
            sampling,
            n,
            100 * i,
        )
        for i in range(count)
    ]


def answers_of(engine: Any, requests: list[Request]) -> list[list[Answer]]:
    found = dict(engine.generate(requests))
    return [found[index] for index in range(len(requests))]


def ids_of(engine: Any, requests: list[Request]) -> list[list[tuple[int, ...]]]:
    return [[answer.token_ids for answer in group] for group in answers_of(engine, requests)]


def limit(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint; Qwen2.5-VL with a limit on images, above all but the large one."""
    limits = {"qwen2_5_vl": ImageLimits(max_pixels=784 * 20)}
    return replace(checkpoint, limits=limits.get(checkpoint.family, ImageLimits()))


@pytest.fixture(scope="module")
def in_process(tiny: Tiny) -> Iterator[Callable[[str], VllmEngine]]:
    running: dict[str, VllmEngine] = {}

    def start(family: str) -> VllmEngine:
        if family not in running:
            running[family] = VllmEngine(limit(tiny(family)), Runtime(), Vllm(kind="vllm", sequences=16))
        return running[family]

    yield start
    for engine in running.values():
        engine.close()


@pytest.fixture(scope="module")
def killed_stage(tiny: Tiny, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A stage that has started a server; at the end it is killed, and none of the server's processes may be left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = tmp_path_factory.mktemp("logs")
    command = [sys.executable, "-c", STAGE, str(tiny("internvl3").folder), str(port), str(logs)]
    environment = {**os.environ, "PYTHONPATH": str(root), "VLLM_API_KEY": KEY}
    stage = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started = time.monotonic()
    try:
        assert stage.stdout is not None
        assert "ready\n" in iter(stage.stdout.readline, ""), [log.read_text()[-3000:] for log in logs.iterdir()]
        print(f"server up after {time.monotonic() - started:.1f} s")
        yield {"url": f"http://127.0.0.1:{port}", "process": stage}
    finally:
        below = list_descendants(stage.pid)
        stage.kill()
        stage.wait(20)
        for pid in below:
            if is_alive(pid):
                time.sleep(20)
    assert not [pid for pid in below if is_alive(pid)]


@pytest.fixture(scope="module")
def attached(
    killed_stage: dict[str, Any], tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmServerEngine]:
    """The engine of somebody who uses a server that runs already."""
    settings = VllmServer(kind="vllm_server", urls=(killed_stage["url"],))
    need = StartOptions(tmp_path_factory.mktemp("none"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", KEY)
        engine = VllmServerEngine(tiny("internvl3"), Runtime(), settings, need, "internvl3")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def student(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServerEngine]:
    settings = VllmServer(kind="vllm_server", sequences=16, start_seconds=300, attempts=3)
    logs = tmp_path_factory.mktemp("logs")
    student = limit(tiny("qwen2_5_vl"))
    engine = VllmServerEngine(student, Runtime(), settings, StartOptions(logs), "student", trainable=True)
    yield engine
    engine.close()
    assert not [pid for server in engine._servers for pid in list_descendants(server.supervisor_pid)]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl3"])
def test_greedy_answers_are_those_of_the_engine_in_process(
    family: str, in_process: Any, request: pytest.FixtureRequest
) -> None:
    """Token for token, text like a special token and a second marker in the question included (traps T5, T6, T7)."""
    server = request.getfixturevalue("student" if family == "qwen2_5_vl" else "attached")
    asked = seeing_requests(GREEDY, count=12)
    asked[5] = replace(asked[5], images=[encoded(noise(600, 800, 3), "JPEG")])
    here_engine = in_process(family)
    here, there = answers_of(here_engine, asked), answers_of(server, asked)
    assert here == there  # text, ids, reasons and counts
    prompt = load_reader(here_engine.checkpoint).make_prompt(asked[5].messages, asked[5].images)
    assert there[5][0].prompt_tokens == len(prompt.ids)
    assert len({answer.token_ids for group in there for answer in group}) > 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", PICTURES)
def test_a_server_sees_the_pixels_that_training_sees(kind: str) -> None:
    """vLLM's own decoder on what is sent, against what the student is trained on."""
    from vllm.multimodal.media.image import ImageMediaIO

    image = PICTURES[kind]()
    sent = base64.b64decode(make_data_url(image, "q").partition(",")[2])
    assert (sent == image) == (kind in ("plain", "photo", "grey"))
    assert np.array_equal(np.asarray(ImageMediaIO().load_bytes(sent).media), np.asarray(open_image(image)))


@pytest.mark.slow
def test_sampled_answers_have_their_own_seeds(in_process: Any, student: VllmServerEngine) -> None:
    """n answers of a question are one request; answer i is drawn with seed + i, as in process."""
    there = ids_of(student, seeing_requests(WARM, n=4))
    assert len({ids for group in there for ids in group}) > 12
    same = sum(a == b for a, b in zip(there, ids_of(in_process("qwen2_5_vl"), seeing_requests(WARM, n=4)), strict=True))
    print(f"sampled: {same} of 6 questions have the same 4 answers as in process")
    later = [Request(one.name, one.messages, one.images, WARM, 2, one.seed + 2) for one in seeing_requests(WARM)]
    assert ids_of(student, later)[3] == there[3][2:]


@pytest.mark.slow
def test_a_server_with_a_port_answers_only_to_its_key(killed_stage: dict[str, Any]) -> None:
    url, asked = killed_stage["url"], {"token_ids": [1], "sampling_params": {"max_tokens": 1}}
    for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer none"}, {"Authorization": KEY}):
        assert httpx.post(f"{url}/inference/v1/generate", json=asked, headers=headers).status_code == 401
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
    good = {"Authorization": f"Bearer {KEY}", "Origin": "http://elsewhere.example"}
    reply = httpx.get(f"{url}/v1/models", headers=good)
    assert reply.status_code == 200
    assert "access-control-allow-origin" not in reply.headers
    for route in ("collective_rpc", "reset_prefix_cache", "sleep", "load_lora_adapter"):
        assert httpx.post(f"{url}/{route}", json={"method": "x"}, headers=good).status_code == 404


@pytest.mark.slow
def test_servers_of_a_model_in_training_have_no_port(tiny: Tiny, tmp_path: Path) -> None:
    settings = VllmServer(kind="vllm_server", port=8000)
    with pytest.raises(ValueError, match=r"runtime\.engines\.student\.port is 8000; .* remove port"):
        VllmServerEngine(tiny("qwen2_5_vl"), Runtime(), settings, StartOptions(tmp_path), "student", trainable=True)


@pytest.mark.slow
def test_an_openai_client_gets_the_same_tokens(
    killed_stage: dict[str, Any], tiny: Tiny, in_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The `openai` package itself, then our engine for endpoints, against the chat route of a real server."""
    chat = load_reader(tiny("internvl3")).chat
    asked = seeing_requests(GREEDY, plain=True)
    here = answers_of(in_process("internvl3"), asked)
    bias = {str(token): -100 for token in chat.banned_token_ids}
    client = openai.OpenAI(base_url=killed_stage["url"] + "/v1", api_key=KEY, max_retries=0, timeout=60)
    for one, (expected,) in zip(asked, here, strict=True):
        text = one.messages[0]["content"].removeprefix("<image>")
        parts: Any = [
            {"type": "image_url", "image_url": {"url": make_data_url(one.images[0], one.name)}},
            {"type": "text", "text": text},
        ]
        reply: Any = client.chat.completions.create(
            model="internvl3",
            messages=[{"role": "user", "content": parts}],
            temperature=0,
            max_tokens=24,
            logit_bias=bias,  # type: ignore[arg-type]
            extra_body={"return_token_ids": True},
        )
        assert tuple(reply.choices[0].token_ids) == expected.token_ids
    # Tokens such as <quad> are content here; vLLM leaves them out of texts unless it is told not to.
    body = {"return_token_ids": True, "logit_bias": bias, "skip_special_tokens": False}
    block = {"provider": "here", "name": "internvl3", "body": body}
    write_card(tmp_path, "remote", "fp32", 256, {"endpoint": block})
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    settings = OpenAi(kind="openai", base_url=killed_stage["url"] + "/v1", api_key="VLLM_API_KEY")
    endpoint = EndpointEngine(open_checkpoint(tmp_path), settings, "internvl3")
    there = answers_of(endpoint, asked)
    endpoint.close()
    assert [[answer.token_ids for answer in group] for group in there] == [
        [a.token_ids for a in group] for group in here
    ]
    # The text is the server's own: vLLM leaves out a character whose bytes are not all there yet at the end, and with
    # this setting it shows tokens that pad, which are no content here.
    pad = str(chat.tokenizer.pad_token)
    told = [[(a.text.replace(pad, "").rstrip("\ufffd"), a.finish_reason, a.prompt_tokens) for a in g] for g in there]
    assert told == [[(a.text.rstrip("\ufffd"), a.finish_reason, a.prompt_tokens) for a in group] for group in here]


@pytest.mark.slow
def test_a_pattern_holds_answers_in_every_engine(in_process: Any, student: VllmServerEngine) -> None:
    """As the judge's verdicts want it: the whole answer matches."""
    held = Sampling(temperature=0.0, max_tokens=40, pattern="[0-9]{3}<answer>[01]</answer>")
    engines = (in_process("qwen2_5_vl"), student)
    texts = [[group[0].text for group in answers_of(engine, seeing_requests(held))] for engine in engines]
    assert texts[0] == texts[1]
    assert all(re.fullmatch(r"[0-9]{3}<answer>[01]</answer>", text) for text in texts[0])


@pytest.mark.slow
def test_banned_tokens_are_never_drawn_over_http(tiny: Tiny, student: VllmServerEngine) -> None:
    """A model whose head wants nothing but image placeholders (trap T1); JSON has no minus infinity."""
    reader = load_reader(tiny("qwen2_5_vl"))
    network = load_network(tiny("qwen2_5_vl"), reader)
    original = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    network.head.weight.data[reader.chat.banned_token_ids] *= 50
    student.update_weights(network.model.state_dict().items())
    banned = set(reader.chat.banned_token_ids)
    try:
        for sampling, n in ((GREEDY, 1), (WARM, 4)):
            written = {
                token for group in ids_of(student, seeing_requests(sampling, n)) for ids in group for token in ids
            }
            assert written
            assert not written & banned
        student.chat.banned_token_ids = []  # the test can fail: without the ban they are what it writes
        assert {token for group in ids_of(student, seeing_requests(GREEDY)) for ids in group for token in ids} & banned
    finally:
        student.chat.banned_token_ids = sorted(banned)
        student.update_weights(original.items())


@pytest.mark.slow
def test_new_weights_through_a_file_act_as_in_process(tiny: Tiny, in_process: Any, student: VllmServerEngine) -> None:
    """Every weight changes, the vision tower's too: stale features of images would show (trap T12)."""
    here, asked = in_process("qwen2_5_vl"), seeing_requests(GREEDY)
    before = ids_of(student, asked)
    network = load_network(tiny("qwen2_5_vl"), load_reader(tiny("qwen2_5_vl")))
    original = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    with torch.no_grad():
        for parameter in network.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.02)
    for engine in (here, student):
        started = time.monotonic()
        engine.update_weights(network.model.state_dict().items())
        print(f"{engine.name}: new weights in {time.monotonic() - started:.3f} s")
    changed = ids_of(student, asked)
    assert changed == ids_of(here, asked)
    assert all(new != old for new, old in zip(changed, before, strict=True))
    for engine in (here, student):
        engine.update_weights(original.items())
    assert ids_of(student, asked) == before == ids_of(here, asked)


@pytest.mark.slow
def test_what_the_model_cant_take_is_named_and_the_server_goes_on(student: VllmServerEngine) -> None:
    long = Request("q-long", [{"role": "user", "content": "What is the sum? " * 200}], [], GREEDY)
    broken = Request("q-broken", [{"role": "user", "content": "<image>What?"}], [picture(0)[:300]], GREEDY)
    for bad, why in ((long, "longer than the maximum model length"), (broken, "")):
        with pytest.raises(RequestError, match=f"question {bad.name}: .*{why}"):
            list(student.generate([*seeing_requests(GREEDY), bad]))
    assert len(ids_of(student, seeing_requests(GREEDY))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("other", ["family", "image settings", "limits on images"])
def test_a_server_of_another_model_is_found_out(
    other: str, killed_stage: dict[str, Any], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    checkpoint, why = tiny("qwen2_5_vl"), "is it a server of this model"
    if other == "image settings":
        folder = Path(shutil.copytree(tiny("internvl3").folder, tmp_path / "copy"))
        processor = read_json(folder / "processor_config.json")
        write_json(folder / "processor_config.json", {**processor, "image_seq_length": 4})
        # HTTP 500 where the server has seen the image in a prompt of another model: it keeps what it made of it.
        checkpoint, why = (
            open_checkpoint(folder),
            r"tokenizes question q0 to \d+ tokens, training to \d+, .* it serves another model"
            r"|HTTP 500: .*; is it a server of this model\?",
        )
    if other == "limits on images":  # which the images of no question here exceed
        checkpoint = replace(tiny("internvl3"), limits=ImageLimits(max_tiles=4))
        why = (
            r"with a blank image of 4000 x 3000 pixels to \d+ tokens, training to \d+, .*limits on images "
            r"\(max_tiles 4\): start the server with --mm-processor-kwargs '{.*\"max_patches\": 4"
        )
    settings = VllmServer(kind="vllm_server", urls=(killed_stage["url"],))
    engine = VllmServerEngine(checkpoint, Runtime(), settings, StartOptions(tmp_path), "other")
    with pytest.raises(EngineError, match=why):
        list(engine.generate(seeing_requests(GREEDY)))
    engine.close()


@pytest.mark.slow
def test_a_server_that_dies_ends_the_work_and_what_was_finished_stays(student: VllmServerEngine) -> None:
    """Last in the file: it kills the server of the others. One wave is long enough that most of it is not finished."""
    asked = seeing_requests(Sampling(temperature=1.0, max_tokens=150), n=16, count=40)
    found: list[int] = []

    def work() -> None:
        for index, group in student.generate(asked):
            found.append(index)
            assert len(group) == 16
            if len(found) == 2:
                for pid in list_descendants(student._servers[0].supervisor_pid):
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(
        EngineError, match=r"vLLM server of student: the server ended \(exit code \d+\); the end of .*\.log:"
    ):
        work()
    print(f"{len(found)} of 40 questions were answered before the server was killed")
    assert 2 <= len(found) < 40
