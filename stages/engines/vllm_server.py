"""vLLM as servers, started by the stage or already running: replicas, several GPUs each, new weights while they run.

Prompts are sent as token ids through vLLM's own route (`/inference/v1/generate`), together with the original image
bytes: only our chat template is applied, text like `<|im_end|>` in a question stays text (trap T7), and the ids of
answers are returned (T6). At the first call every server reports how it tokenized a prompt, which must match training
(T5).
"""

import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from stages.config.engines import VllmServer
from stages.config.placement import count_replica_gpus, spans_machines
from stages.config.runtime import Runtime
from stages.corpora.rows import split_target
from stages.engines.arguments import (
    check_log_probs,
    encode_given,
    encode_request,
    format_flags,
    make_adapter_arguments,
    make_data_url,
    make_engine_arguments,
    make_sampling_arguments,
)
from stages.engines.calls import IDLE_SECONDS, SHOWN_CHARACTERS, Call, Caller, CallStream
from stages.engines.engine import Answer, EngineError, Outcome, Request, RequestError, StartOptions
from stages.engines.limit_probes import iter_limit_probes
from stages.engines.progress_watch import ProgressWatch
from stages.engines.server import Server
from stages.engines.server_replies import read_answers
from stages.engines.server_weights import ServerWeights, name_receiver
from stages.engines.stream import ServerStream, require_answers, send_in_window
from stages.engines.supervisor import STOPPED_SECONDS
from stages.engines.weight_file import SaveAdapter
from stages.job.devices import VISIBLE, list_devices, name_devices
from stages.vlm.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

NO_PORT = "servers of a model in training, and those that sleep, let any caller run code in them; remove port"
GENERATE_ROUTE = "/inference/v1/generate"
NEVER = -1e30  # added to the logit of a banned token
# The `vllm` command requires a package named vllm; the CPU build has another name. This is the module that it runs.
_MODULE = "vllm.entrypoints.launchers.api_server.entry"
_SUPERVISOR_SECONDS = 0.5  # after a broken connection: until the supervisor notices that its server is gone
_CONTROL_SECONDS = 600.0  # for loading new weights and emptying caches
_ROOT = Path(__file__).parents[2]  # where servers find `stages`


class VllmServerEngine:
    """One checkpoint, served by one or several vLLM servers."""

    name = "vllm_server"

    def __init__(
        self,
        checkpoint: Checkpoint,
        runtime: Runtime,
        settings: VllmServer,
        options: StartOptions,
        label: str,
        trainable: bool = False,
    ) -> None:
        """Starts the servers and waits until they are ready: 25 to 40 s on CPU, minutes for a large model.

        `label` is the model's name in logs and errors. With `trainable` the servers accept new weights. The routes for
        that let any caller run code in the server, and vLLM asks for its key on other routes only; so such servers
        listen on a Unix socket in a folder of this user.
        Raises EngineError with the end of the log when a server does not start, ValueError for invalid settings.
        """
        from stages.vlm.reader import load_reader

        self.label, self.settings = label, settings
        self._log_probs = options.log_probs and not settings.urls  # the mode of a running server is not known
        self.checkpoint, self._runtime = checkpoint, runtime
        self._reader = load_reader(checkpoint)
        self.chat = self._reader.chat
        self._folder = Path(tempfile.mkdtemp(prefix="ril-"))  # only for this user; paths of sockets must be short
        self._servers: list[Server] = []
        # Through the environment: other users of the machine can read a command line.
        self._key = os.environ.get("VLLM_API_KEY") or ("" if settings.urls else secrets.token_urlsafe(32))
        self._checked = False
        self._sleeps = settings.sharing == "sleep" and not settings.urls and bool(list_devices())
        self._ssl = httpx.create_ssl_context()  # once for all clients: 20 ms
        self._adapter_rank = options.adapter_rank
        spans = spans_machines(settings)
        self._direct = trainable and not spans and sends_directly(runtime, options.adapter_rank)
        self._weights = ServerWeights(
            self._control, self._folder, checkpoint.weights, options.logs.parent if spans else None
        )
        began, say = time.monotonic(), options.say
        try:
            self._urls = list(settings.urls) or self._start_replicas(options.logs, trainable)
            for server in self._servers:
                say(f"starting a vLLM server of {label}; log: {server.log}")
            self._wait_until_ready()
            self.version = str(self._control("GET", "/version")[0].json()["version"])
        except BaseException:
            self._stop()
            raise
        say(
            f"vLLM {self.version} serves {label} ({len(self._urls)} servers, ready after "
            f"{time.monotonic() - began:.0f} s)"
        )
        servers = [partial(self._make_client, url) for url in self._urls]
        every = settings.model_copy(update={"concurrency": settings.concurrency * len(servers)})
        self._caller = Caller(
            f"vLLM server of {label}", GENERATE_ROUTE, servers, every, self._describe_exit, trusted=True
        )
        self._watch = ProgressWatch(
            [partial(self._open_client, url) for url in self._urls[: len(self._servers)]],
            lambda: self._caller.open_calls[: len(self._servers)],
            60 * runtime.stuck_minutes,
            lambda place, reason: self._servers[place].end_hanging(reason),
        )

    # --- servers ----------------------------------------------------------------------------------------------------

    def _start_replicas(self, logs: Path, trainable: bool) -> list[str]:
        """Starts the replicas and returns their addresses."""
        settings = self.settings
        if (trainable or self._sleeps) and settings.port is not None:
            raise ValueError(f"runtime.engines.{self.label}.port is {settings.port}; {NO_PORT}")
        arguments = {
            **make_engine_arguments(self.checkpoint, self._runtime, settings, self._reader, self._log_probs),
            **make_adapter_arguments(self._adapter_rank),
            **({"worker_extension_cls": name_receiver()} if self._direct else {}),
            "tensor_parallel_size": settings.tensor_parallel,
            "pipeline_parallel_size": settings.pipeline_parallel,
            "served_model_name": self.label,
            "enable_scale_out": True,  # the route for token ids
            "disable_uvicorn_access_log": True,
        }
        del arguments["disable_log_stats"]  # the counters by which `ProgressWatch` sees that the server works
        urls = []
        for replica, devices in enumerate(assign_devices(self.label, settings)):
            if settings.port is None:
                urls.append(f"unix:{self._folder / f'{replica}.sock'}")
                place: dict[str, Any] = {"uds": self._folder / f"{replica}.sock"}
            else:
                urls.append(f"http://127.0.0.1:{settings.port + replica}")
                place = {"host": "127.0.0.1", "port": settings.port + replica, "allowed_origins": "[]"}
            command = [sys.executable, "-m", _MODULE, *format_flags({**arguments, **place}), *settings.args]
            environment = {**devices, STOPPED_SECONDS: str(self._runtime.stopped_seconds), "VLLM_API_KEY": self._key}
            environment |= {"VLLM_SERVER_DEV_MODE": "1"} if trainable or self._sleeps else {}
            environment |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"} if self._adapter_rank else {}
            environment |= {"PYTHONPATH": _add_to_path(_ROOT)} if self._direct else {}
            log = logs / f"vllm_server-{self.label}-{replica}-{os.getpid()}.log"
            self._servers.append(Server(command, log, environment, self._folder))
        return urls

    def _wait_until_ready(self) -> None:
        for place, url in enumerate(self._urls):
            if self._servers:
                self._servers[place].wait_until(partial(self._is_healthy, url), self.settings.start_seconds)
            elif not self._is_healthy(url):
                raise EngineError(
                    f"runtime.engines.{self.label}.urls: {url} does not answer at /health; start that server"
                )

    def _is_healthy(self, url: str) -> bool:
        try:
            with httpx.Client(**self._make_client_arguments(url)) as client:
                return client.get("/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def _open_client(self, url: str) -> httpx.Client:
        return httpx.Client(**self._make_client_arguments(url))

    def _make_client(self, url: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(**self._make_client_arguments(url, asynchronous=True))

    def _make_client_arguments(self, url: str, asynchronous: bool = False) -> dict[str, Any]:
        """Returns the arguments of an httpx client for `url`. Ignores proxies and the environment."""
        limits = httpx.Limits(max_connections=None, keepalive_expiry=IDLE_SECONDS)
        kind: Any = httpx.AsyncHTTPTransport if asynchronous else httpx.HTTPTransport
        shared = {"limits": limits, "verify": self._ssl}
        headers = {"headers": {"Authorization": f"Bearer {self._key}"}} if self._key else {}
        if url.startswith("unix:"):
            return {"transport": kind(uds=url.removeprefix("unix:"), **shared), "base_url": "http://server", **headers}
        return {"transport": kind(**shared), "base_url": url.removesuffix("/"), **headers}

    def _describe_exit(self) -> str | None:
        return next((why for server in self._servers if (why := server.describe_exit()) is not None), None)

    def _control(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> list[httpx.Response]:
        """Sends one request to all servers at once and returns the replies.

        Raises EngineError if one is not 200, without waiting for the other servers: with one of them gone they may
        wait for each other.
        """

        def ask(url: str) -> httpx.Response:
            reply = self._ask(url, method, path, body)
            if reply.status_code != 200:
                raise self._make_error(
                    url, f"{method} {path}: HTTP {reply.status_code}: {reply.text[:SHOWN_CHARACTERS]}"
                )
            return reply

        threads = ThreadPoolExecutor(len(self._urls))
        try:
            replies = [threads.submit(ask, url) for url in self._urls]
            for reply in as_completed(replies):
                reply.result(0)
        finally:
            threads.shutdown(wait=False)
        return [reply.result(0) for reply in replies]

    def _ask(self, url: str, method: str, path: str, body: Mapping[str, Any] | None) -> httpx.Response:
        try:
            with httpx.Client(**self._make_client_arguments(url)) as client:
                return client.request(method, path, json=body, timeout=_CONTROL_SECONDS)
        except httpx.TransportError as error:
            time.sleep(_SUPERVISOR_SECONDS)
            raise self._make_error(
                url, self._describe_exit() or f"{method} {path}: {type(error).__name__}: {error}"
            ) from error

    def _make_error(self, url: str, reason: str) -> EngineError:
        return EngineError(f"vLLM server of {self.label} at {url}: {reason}")

    # --- answers ----------------------------------------------------------------------------------------------------

    def open_stream(self) -> ServerStream:
        """Opens a stream to which requests are added one by one."""
        return ServerStream(CallStream(self._caller), self._make_call)

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, Outcome]]:
        """Yields (number of the request, its answers or the reason of its refusal) as requests finish.

        As many requests as are in flight wait for a free place; later ones are not taken yet. Raises EngineError as
        `generate` does.
        """
        return send_in_window(self.open_stream(), requests, 2 * self.settings.concurrency)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields (index in `requests`, its n answers in order) as requests finish.

        A request whose attempts all failed gives failed answers. Raises RequestError for a prompt that the model cannot
        take, after the answers to all others. Raises EngineError with the end of the log when a server ended. Answers
        yielded before an error are complete.
        """
        return require_answers(self.iter_outcomes(requests))

    def _make_call(self, request: Request) -> Call[list[Answer]]:
        check_log_probs([request], self._log_probs)
        if not self._checked:
            self._check(request)
        return Call(
            request.name,
            partial(self._make_body, request),
            partial(read_answers, request, self.chat),
        )

    def _make_body(self, request: Request) -> dict[str, Any]:
        try:
            ids = encode_request(request, self.chat)
        except ValueError as error:
            raise RequestError(f"question {request.name}: {error}") from error
        images = [{"type": "image_url", "url": make_data_url(image, request.name)} for image in request.images]
        adapter = {"model": self._adapter_name} if self._weights.serves_adapter else {}
        return {
            **adapter,
            "token_ids": ids,
            "sampling_params": make_sampling_arguments(request, self.chat, NEVER),
            **({"content_parts": images} if images else {}),
        }

    def _check(self, request: Request) -> None:
        """Raises EngineError if a server tokenizes a prompt differently from training: it serves another model.

        A request that no server can take proves nothing; the next request is checked instead. Servers that somebody
        else has started are also asked for images beyond the model's limits.
        """
        try:
            body = self._make_body(request)
        except RequestError:
            return
        if not all(self._compare(url, request, body) for url in self._urls):
            return
        if self.settings.urls and self.checkpoint.limits.list_set():
            for probe in iter_limit_probes(self._reader, self.checkpoint.context_tokens):
                for url in self._urls:
                    if not self._compare(url, probe, self._make_body(probe)):
                        raise self._make_error(url, f"it refuses a question {probe.name}; {self._explain_limits()}")
        self._checked = True

    def _explain_limits(self) -> str:
        arguments = json.dumps(self._reader.make_vllm_arguments())
        return (
            f"this model has limits on images ({self.checkpoint.limits}): start the server with "
            f"--mm-processor-kwargs '{arguments}'"
        )

    def _compare(self, url: str, request: Request, body: Mapping[str, Any]) -> bool:
        """Returns whether a server takes a request; raises EngineError if it tokenizes it differently from training."""
        body = {
            **body,
            "return_token_ids": True,
            "sampling_params": {"max_tokens": 1, "temperature": 0.0, "detokenize": False},
        }
        reply = self._ask(url, "POST", GENERATE_ROUTE, body)
        if reply.status_code == 400:
            return False
        if reply.status_code != 200:
            raise self._make_error(
                url,
                f"{GENERATE_ROUTE}: HTTP {reply.status_code}: {reply.text[:SHOWN_CHARACTERS]}; is it a "
                "server of this model?",
            )
        seen = reply.json()["prompt_token_ids"]
        messages, _ = split_target(request.messages)
        ours = self._reader.make_prompt(messages, request.images).ids.tolist()
        ours += encode_given(request, self.chat)
        if seen != ours:
            limits = f"; {self._explain_limits()}" if self.checkpoint.limits.list_set() else ""
            raise self._make_error(
                url,
                f"it tokenizes question {request.name} to {len(seen)} tokens, training to {len(ours)}, and "
                f"they differ; it serves another model, or its image processor is configured differently{limits}",
            )
        return True

    def update_weights(self, named: Iterable[tuple[str, "Tensor"]]) -> int:
        """Loads new weights into all servers, and empties their caches (trap T12); returns the bytes of the weights.

        `named` is the whole `state_dict()` of the transformers model. `runtime.weight_transfer` selects the way.
        """
        content = (self._weights.send_directly if self._direct else self._weights.send_files)(named)
        self._empty_caches()
        return content

    def update_adapter(self, save: SaveAdapter, size: int) -> int:
        """Loads a new adapter into all servers; returns its bytes."""
        content = self._weights.send_adapter(save, size, self._adapter_name)
        self._empty_caches()
        return content

    @property
    def _adapter_name(self) -> str:
        return f"{self.label}-adapter"

    def _empty_caches(self) -> None:
        if not all(reply.json()["success"] for reply in self._control("POST", "/reset_prefix_cache")):
            raise EngineError(
                f"vLLM server of {self.label} can't empty its prefix cache: answers are still being written"
            )
        for cache in ("mm", "encoder"):
            self._control("POST", f"/reset_{cache}_cache")

    def sleep(self) -> None:
        """Moves the weights of every server to host memory and drops its cache (level 1). Does nothing on CPU."""
        if self._sleeps:
            self._control("POST", "/sleep?level=1")

    def wake(self) -> None:
        """Takes the GPU memory of every server back. Does nothing on CPU."""
        if self._sleeps:
            self._control("POST", "/wake_up")

    def close(self) -> None:
        """Stops the servers that this engine started; those of `urls` keep running."""
        self._watch.close()
        self._caller.close()
        self._stop()

    def _stop(self) -> None:
        for server in self._servers:
            server.stop()
        self._weights.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def assign_devices(label: str, settings: VllmServer) -> list[dict[str, str]]:
    """Returns the environment of each replica: its share of the GPUs, if there are any.

    Without `replicas` there are as many as the GPUs hold, one on CPU. Raises ValueError when they need more.
    """
    each = count_replica_gpus(settings)
    if not (devices := list_devices()):
        return [{}] * (settings.replicas or 1)
    if spans_machines(settings):
        return [{VISIBLE: ",".join(devices)}] * (settings.replicas or 1)
    names = name_devices(settings.gpus) if settings.gpus else devices
    replicas = settings.replicas or max(1, len(names) // each)
    if len(names) < each * replicas:
        raise ValueError(
            f"runtime.engines.{label} wants {replicas} replicas of {each} GPUs, but there are {len(names)} "
            f"({', '.join(names)}); lower replicas, tensor_parallel or pipeline_parallel"
        )
    return [{VISIBLE: ",".join(names[first : first + each])} for first in range(0, each * replicas, each)]


def sends_directly(runtime: Runtime, adapter_rank: int) -> bool:
    """Whether new weights go to the workers of vLLM on this machine without a file."""
    import torch

    return runtime.select_transfer(adapter_rank, torch.cuda.is_available()) == "direct"


def _add_to_path(folder: Path) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
