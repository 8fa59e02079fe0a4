"""`ril serve-model`: one checkpoint behind vLLM's own OpenAI server on loopback, for harnesses of others.

The server has the arguments of the stages' engines: precision, context, limits on images, KV cache, GPUs. What differs
is what a client sends: the server applies the checkpoint's chat template to texts of messages, so text that spells a
special token becomes one, and image placeholders are not banned when it samples (docs/publish.md).
"""

import json
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from flows.chat.candidates import Candidate, ChatError
from flows.ui.ports import find_holder
from stages.config.engines import GpuUse, OpenAi, Replay, VllmServer
from stages.config.params import Params
from stages.config.runtime import Runtime
from stages.engines.engine import EngineError, StartOptions
from stages.engines.start import find_label
from stages.engines.vllm_server import VllmServerEngine

LOOPBACK_HOST = "127.0.0.1"
_KEY_BYTES = 24  # 192 bits
_LOOK_SECONDS, _MISSES = 5.0, 3  # between looks at the server, and looks without an answer until it counts as gone
_EXAMPLE = ("MMStar", "ImageMCQDataset", "mmstar")  # of VLMEvalKit: data set and class; of lmms-eval: task


@dataclass(frozen=True)
class ServedModel:
    """A running server."""

    name: str  # of the model in requests
    url: str  # up to and including /v1
    access: Path  # file with address and key, to be sourced in a shell
    config: Path  # of VLMEvalKit
    max_tokens: int  # of an answer


def choose_server(candidate: Candidate, runtime: Runtime, port: int) -> VllmServer:
    """Returns the settings of the server: those of the model's engine in stage evaluate, one replica, a TCP port.

    Raises ChatError for a model that is behind an API already, and for a port that somebody holds.
    """
    settings = runtime.find_engine("evaluate", find_label(candidate.checkpoint))
    if candidate.checkpoint.endpoint is not None or isinstance(settings, OpenAi | Replay):
        raise ChatError(f"{candidate.name} has no weights to serve here: its engine is {settings.kind!r}")
    if isinstance(settings, VllmServer) and settings.urls:
        raise ChatError(f"{candidate.name} is served already, at {', '.join(settings.urls)}")
    if holder := find_holder(LOOPBACK_HOST, port):
        raise ChatError(f"port {port} is held by {holder}; take another one with --port")
    same = {name: getattr(settings, name) for name in GpuUse.model_fields if name not in ("sharing", "memory_share")}
    more = {name: getattr(settings, name) for name in ("pipeline_parallel", "args", "start_seconds")
            if isinstance(settings, VllmServer)}  # fmt: skip
    return VllmServer(kind="vllm_server", port=port, replicas=1, memory_share=settings.memory_share, **same, **more)


@contextmanager
def serve_model(
    candidate: Candidate, params: Params, store: Path, port: int, say: Callable[[str], None]
) -> Iterator[ServedModel]:
    """Serves a model until the block ends; its key is new, and in a file that only this user can read.

    Raises ChatError as `choose_server`, EngineError with the end of the log when the server does not start.
    """
    settings = choose_server(candidate, params.runtime, port)
    checkpoint = candidate.checkpoint
    if checkpoint.weights == checkpoint.folder:
        from stages.vlm.weights import check_files  # local import: needs torch

        check_files(checkpoint.weights)
    # As vLLM takes it; VLMEvalKit refuses a key with another beginning.
    key = os.environ["VLLM_API_KEY"] = f"sk-{secrets.token_urlsafe(_KEY_BYTES)}"
    options = StartOptions(store / "logs", say=say, stage="evaluate")
    engine = VllmServerEngine(checkpoint, params.runtime, settings, options, candidate.name)
    try:
        folder = store / "served"
        served = ServedModel(
            candidate.name,
            f"http://{LOOPBACK_HOST}:{port}/v1",
            folder / f"{candidate.name}-{port}",
            folder / f"{candidate.name}-{port}-vlmevalkit.json",
            params.evaluate.max_tokens,
        )
        try:
            _write_private(served.access, _format_access(served, key))
            _write_private(served.config, json.dumps(make_vlmevalkit_config(served), indent=2) + "\n")
            yield served
        finally:
            served.access.unlink(missing_ok=True)
            served.config.unlink(missing_ok=True)
    finally:
        engine.close()


def watch_server(served: ServedModel) -> None:
    """Returns never; raises EngineError when the server no longer answers."""
    misses = 0
    with httpx.Client(trust_env=False, timeout=_LOOK_SECONDS) as client:
        while misses < _MISSES:
            time.sleep(_LOOK_SECONDS)
            try:
                answers = client.get(f"{served.url.removesuffix('/v1')}/health").status_code == 200
            except httpx.TransportError:
                answers = False
            misses = 0 if answers else misses + 1
    raise EngineError(f"the server of {served.name} no longer answers; its log is in the folder logs of the store")


def _format_access(served: ServedModel, key: str) -> str:
    """Returns the variables that clients read: OPENAI_BASE_URL those of OpenAI, OPENAI_API_BASE older ones."""
    values = {"OPENAI_API_KEY": key, "OPENAI_BASE_URL": served.url, "OPENAI_API_BASE": served.url}
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}-{os.getpid()}")
    hidden.unlink(missing_ok=True)
    with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    hidden.rename(path)


def make_vlmevalkit_config(served: ServedModel) -> dict[str, Any]:
    """Returns the file of VLMEvalKit's `run.py --config`; the key comes from OPENAI_API_KEY.

    Its own defaults ask for 2,048 tokens, which a short context refuses, and scale pictures down to 512 pixels.
    """
    data_set, kind, _ = _EXAMPLE
    model = {
        "class": "GPT4V",
        "model": served.name,
        "api_base": f"{served.url}/chat/completions",
        "temperature": 0,
        "max_tokens": served.max_tokens,
        "img_size": -1,
        "img_detail": "high",
        "retry": 3,
    }
    return {"model": {served.name: model}, "data": {data_set: {"class": kind, "dataset": data_set}}}


def list_harness_commands(served: ServedModel) -> list[str]:
    """Returns the commands with which harnesses evaluate the served model, in a shell of their own environment."""
    arguments = f"model_version={served.name},base_url={served.url}"
    return [
        f"source {shlex.quote(str(served.access))}",
        f"python -m lmms_eval --model openai --model_args {arguments} --tasks {_EXAMPLE[2]} --log_samples",
        f"python run.py --config {shlex.quote(str(served.config))}",
    ]
