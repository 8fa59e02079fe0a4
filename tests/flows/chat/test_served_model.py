"""`ril serve-model`: a real vLLM server whose answers and scores on a benchmark are those of stage `evaluate`."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from flows.chat.candidates import ChatError, require_candidate
from flows.chat.served_model import ServedModel, choose_server, list_harness_commands, make_vlmevalkit_config
from flows.environment import store_folder
from stages.benchmarks.answering import plan_benchmarks
from stages.benchmarks.predictions import read_benchmark_record
from stages.benchmarks.prompts import BenchmarkPrompt
from stages.benchmarks.registry import find_benchmark, register
from stages.benchmarks.scores import BenchmarkReply, compute_benchmark_scores
from stages.config.params import Params, load_params, validate_params
from stages.config.yaml import merge_params, read_yaml
from stages.corpora.rows import read_questions
from stages.engines.arguments import make_data_url
from stages.tiny.benchmarks.specs import SPECS
from stages.tiny.benchmarks.write import write_world

BENCHMARKS = ("tiny_choice", "tiny_number", "tiny_open")


def find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def access(evaluated_run: Path) -> Iterator[tuple[dict[str, str], "subprocess.Popen[str]", Path]]:
    """Variables of a running `ril serve-model`, its process, and the file that they are from."""
    port = find_free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve-model", "ril", "--port", str(port)],
        cwd=evaluated_run,
        env={**os.environ, "PYTHONPATH": str(evaluated_run)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    file, end = store_folder(evaluated_run) / "served" / f"ril-{port}", time.monotonic() + 400
    try:
        while not file.is_file():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.5)
        lines = file.read_text().splitlines()
        yield dict(line.removeprefix("export ").split("=", 1) for line in lines), process, file
    finally:
        process.kill()
        process.wait(30)


def make_message(prompt: BenchmarkPrompt) -> dict[str, Any]:
    """A benchmark's prompt as a harness sends it: parts in order, pictures as data URLs."""
    parts: list[dict[str, Any]] = []
    for part in prompt.parts:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        else:
            parts.append({"type": "image_url", "image_url": {"url": make_data_url(part.data, prompt.id)}})
    return {"role": "user", "content": parts}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_scores_through_the_endpoint_are_ours(evaluated_run: Path, access: tuple[dict[str, str], Any, Path]) -> None:
    """All rows of three benchmarks, asked by OpenAI's client at temperature 0: equal answers, equal scores."""
    variables = access[0]
    client = openai.OpenAI(api_key=variables["OPENAI_API_KEY"], base_url=variables["OPENAI_BASE_URL"])
    register(SPECS)
    block = load_params(evaluated_run / "params.yaml").evaluate
    compared = 0
    with tempfile.TemporaryDirectory() as world:
        write_world(Path(world), read_questions(evaluated_run / "data" / "questions", "test"))
        plan = plan_benchmarks(block, Path(world), Path(world), print)
        for name in BENCHMARKS:
            if name not in plan.loaded:
                continue
            record = read_benchmark_record(evaluated_run / "data" / "evaluate" / "ril" / name)
            replies = {}
            for sample, prompt in zip(plan.loaded[name].samples, plan.prompts[name], strict=True):
                message: Any = make_message(prompt)
                said = client.chat.completions.create(
                    model="ril", messages=[message], temperature=0, max_tokens=block.max_tokens
                )
                text = (said.choices[0].message.content or "").strip()
                assert text == record.replies[sample.index].text
                replies[sample.index] = BenchmarkReply(sample.index, text)
                compared += 1
            spec = find_benchmark(name)
            theirs = compute_benchmark_scores(spec, plan.loaded[name].samples, replies, "ours")
            ours = compute_benchmark_scores(spec, record.samples, record.replies, "ours")
            assert theirs["score"] == ours["score"]
    assert compared >= 5


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_only_who_has_the_key_is_answered_and_nothing_is_left(
    access: tuple[dict[str, str], "subprocess.Popen[str]", Path],
) -> None:
    variables, process, file = access
    url = variables["OPENAI_BASE_URL"]
    assert url.startswith("http://127.0.0.1:")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    body = {"model": "ril", "messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 2}
    with httpx.Client(trust_env=False, timeout=60) as client:
        assert client.post(f"{url}/chat/completions", json=body).status_code == 401
        models = client.get(f"{url}/models", headers={"Authorization": f"Bearer {variables['OPENAI_API_KEY']}"})
        assert [one["id"] for one in models.json()["data"]] == ["ril"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err[-2000:]
        assert variables["OPENAI_API_KEY"] not in out + err
        assert f"lmms_eval --model openai --model_args model_version=ril,base_url={url}" in out
        assert not file.exists()
        with pytest.raises(httpx.ConnectError):
            client.get(f"{url}/models")


SERVED = ServedModel("ril", "http://127.0.0.1:8000/v1", Path("a b"), Path("config.json"), 64)


def test_commands_name_the_model_and_the_address_and_no_key() -> None:
    source, lmms, vlmeval = list_harness_commands(SERVED)
    assert source == "source 'a b'"
    assert "--model_args model_version=ril,base_url=http://127.0.0.1:8000/v1 " in lmms
    assert vlmeval.endswith("--config config.json")
    config = make_vlmevalkit_config(SERVED)
    assert config["model"]["ril"]["api_base"] == "http://127.0.0.1:8000/v1/chat/completions"
    assert (config["model"]["ril"]["temperature"], config["model"]["ril"]["max_tokens"]) == (0, 64)
    assert "key" not in json.dumps(config)


def choose(project: Path, overlay: dict[str, Any], port: int) -> Any:
    params: Params = validate_params(merge_params(read_yaml(project / "params.yaml"), overlay))
    return choose_server(require_candidate(project, store_folder(project), params, "ril"), params.runtime, port)


def test_the_server_has_the_settings_of_the_models_engine(tiny_run: Path) -> None:
    port = find_free_port()
    plain = choose(tiny_run, {}, port)
    assert (plain.port, plain.replicas, plain.urls) == (port, 1, ())
    engine = {"kind": "vllm_server", "sequences": 7, "args": ["--mm-encoder-tp-mode", "data"], "replicas": 4}
    own = choose(tiny_run, {"runtime": {"stage_engines": {"evaluate": {"student": engine}}}}, port)
    assert (own.sequences, own.args, own.replicas) == (7, ("--mm-encoder-tp-mode", "data"), 1)


def test_what_cannot_be_served_is_said(tiny_run: Path) -> None:
    def refuse(engine: dict[str, Any], said: str) -> None:
        with pytest.raises(ChatError, match=said):
            choose(tiny_run, {"runtime": {"engines": {"student": engine}}}, find_free_port())

    refuse({"kind": "replay"}, "ril has no weights to serve here: its engine is 'replay'")
    refuse({"kind": "vllm_server", "urls": ["http://node7:8000"]}, "ril is served already, at http://node7:8000")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        with pytest.raises(ChatError, match=r"port \d+ is held by process \d+"):
            choose(tiny_run, {}, taken.getsockname()[1])
