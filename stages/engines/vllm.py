"""vLLM in this process: no second process, so that requests and answers have one deterministic order.

Two engines (student and judge) may share one process and alternate with training in torch; weight updates of one do not
affect the other (a test checks this). On CPU it is the CPU build of the same version.
"""

import contextlib
import gc
import math
import os
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.config.engines import Vllm
from stages.config.runtime import Runtime
from stages.corpora.images import open_image
from stages.engines.arguments import (
    check_log_probs,
    encode_request,
    make_adapter_arguments,
    make_engine_arguments,
    make_sampling_arguments,
    make_scored_answer,
)
from stages.engines.batch_invariance import make_batch_invariant
from stages.engines.engine import Answer, Outcome, Request, RequestError
from stages.engines.preparation import Preparation
from stages.engines.stream import require_answers
from stages.engines.weight_file import SaveAdapter, ServedAdapter, remove_leftovers
from stages.job.devices import list_devices
from stages.job.silence import WorkLimit
from stages.job.stop import STOP
from stages.vlm.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

LOAD_SECONDS = 4 * 3600.0  # until weights are loaded: 150 GB at 10 MB/s
WAITING_SHARE = 0.25  # of the sequences, taken before there is room for them: they fill the places that one step frees
AHEAD_SHARE = (
    0.25  # of the sequences, prepared before they are taken; a step takes no more, so that none waits for long
)


class VllmEngine:
    """One checkpoint, loaded by vLLM in this process.

    With `log_probs`, requests may ask for log probabilities; with `adapter_rank` adapters of that rank are served.
    """

    name = "vllm"

    def __init__(
        self,
        checkpoint: Checkpoint,
        runtime: Runtime,
        settings: Vllm | None = None,
        log_probs: bool = False,
        adapter_rank: int = 0,
    ) -> None:
        """Starts the engine: 4 s on CPU, 20 s for the first model of an architecture, minutes for a large model.

        `settings` are vLLM's own defaults if not given.
        """
        settings = settings or Vllm(kind="vllm")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's core runs in this process
        warnings.filterwarnings("ignore", message=".*reduce_op.* is deprecated", category=FutureWarning)
        import vllm

        from stages.vlm.reader import load_reader

        self.version = str(vllm.__version__)
        self.checkpoint = checkpoint
        reader = load_reader(checkpoint)
        self.chat, self._log_probs = reader.chat, log_probs
        self._window = settings.sequences + math.ceil(settings.sequences * WAITING_SHARE)
        self._ahead = math.ceil(settings.sequences * AHEAD_SHARE)
        loading = WorkLimit(LOAD_SECONDS, f"vLLM has been loading {checkpoint.weights}")
        self._limit = WorkLimit(60 * runtime.stuck_minutes, "vLLM in this process has finished no step and no prompt")
        with contextlib.closing(loading), loading.watch():
            self._llm = vllm.LLM(
                **make_engine_arguments(checkpoint, runtime, settings, reader, log_probs),
                **make_adapter_arguments(adapter_rank),
                tensor_parallel_size=settings.tensor_parallel,
                mm_processor_cache_gb=0,  # 4 GiB of decoded images by default; a request holds its own until it is done
                use_tqdm_on_load=False,  # a progress bar of one second for a local file
            )
        self._sleeps = settings.sharing == "sleep" and bool(list_devices())
        self._engine = self._llm.llm_engine
        self._files = ServedAdapter()
        self._adapter: Any = None  # vLLM's name for the adapter that is served
        if adapter_rank:
            remove_leftovers()
        self._make_batch_invariant()
        # vLLM's own shutdown, also that of a garbage-collected engine, destroys all process groups of this
        # process, including those
        # of other engines and of the training.
        client = self._engine.engine_core
        client._finalizer.detach()
        client._finalizer = weakref.finalize(client, _shut_down_core, client.engine_core)

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, Outcome]]:
        """Yields (number of the request, its n answers or the reason of its refusal) as requests finish.

        Caches are emptied first. Then a request is taken whenever fewer than `window` answers are open, so that vLLM's
        batch is full until the last request was taken. Raises ValueError for a request for log probabilities of which
        the engine was not told at its start.
        """
        self._reset_caches()
        opened: dict[int, Request] = {}
        try:
            with Preparation(requests, self._prepare, self._ahead) as waiting:
                while True:
                    yield from self._admit(waiting, opened)
                    if not opened:
                        return
                    for output in self._step():
                        if output.finished:
                            index = int(output.request_id)
                            yield index, self._make_answers(opened.pop(index), output)
        finally:
            if opened:
                self._engine.abort_request(list(map(str, opened)))

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields (index in `requests`, its n answers in order) as requests finish.

        Raises RequestError for a prompt that the model cannot take, after the answers to all others.
        """
        return require_answers(self.iter_outcomes(requests))

    def _admit(
        self, waiting: Preparation[tuple[Any, Any]], opened: dict[int, Request]
    ) -> Iterator[tuple[int, Outcome]]:
        """Takes requests until the window is full, `ahead` answers at most; yields those that are refused.

        How many are taken follows from the answers that have finished, not from time.
        """
        answers = sum(request.n for request in opened.values())
        most = min(self._window, answers + self._ahead)
        while answers < most and (taken := waiting.take()) is not None:
            index, request, prepared = taken
            try:
                with self._limit.watch():
                    prompt, sampling = prepared.result()
                with _refusing(request):
                    self._engine.add_request(str(index), prompt, sampling, lora_request=self._adapter)
            except RequestError as error:
                yield index, str(error)
            else:
                opened[index] = request
                answers += request.n

    def _step(self) -> list[Any]:
        with self._limit.watch():
            return list(self._engine.step())

    def _prepare(self, request: Request) -> tuple[Any, Any]:
        """Returns what vLLM takes in the place of `request`: its inputs and its sampling parameters."""
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        check_log_probs([request], self._log_probs)
        with _refusing(request):
            prompt: dict[str, Any] = {"prompt_token_ids": encode_request(request, self.chat)}
            if request.images:
                prompt["multi_modal_data"] = {"image": [open_image(image) for image in request.images]}
            parsed = parse_model_prompt(self._engine.model_config, prompt)
            (rendered,) = self._engine.renderer.render_cmpl([parsed])
            return rendered, self._make_sampling(request)

    def _make_sampling(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        values = make_sampling_arguments(request, self.chat, never=float("-inf"))
        constraint = values.pop("structured_outputs")
        values["structured_outputs"] = StructuredOutputsParams(**constraint) if constraint else None
        return SamplingParams(**values, output_kind=RequestOutputKind.FINAL_ONLY)

    def _make_answers(self, request: Request, output: Any) -> list[Answer]:
        if not request.is_scored:
            return [self._make_answer(output, one) for one in output.outputs]
        pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
        return [make_scored_answer(request, self.chat, [float(found[token].logprob) for token, found in pairs])]

    def _make_answer(self, output: Any, one: Any) -> Answer:
        ids = tuple(int(token) for token in one.token_ids)
        reason = str(one.finish_reason)
        seen = zip(one.token_ids, one.logprobs, strict=True) if one.logprobs else None
        log_probs = tuple(float(found[token].logprob) for token, found in seen) if seen else None
        return Answer(one.index, self.chat.decode(ids), ids, reason, len(output.prompt_token_ids), len(ids), log_probs)

    def update_weights(self, named: Iterable[tuple[str, "Tensor"]]) -> int:
        """Loads new weights into the running engine, 0.03 s for a tiny model; returns their bytes.

        `named` is the whole `state_dict()` of the transformers model, including the head if it is tied to the
        embeddings: without it vLLM keeps the old head on CPU.
        """
        sizes: list[int] = []

        def iter_counted() -> Iterator[tuple[str, "Tensor"]]:
            for name, tensor in named:
                sizes.append(tensor.nbytes)
                yield name, tensor

        with self._limit.watch():
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter_counted()})
        self._make_batch_invariant()
        self._reset_caches()
        return sum(sizes)

    def update_adapter(self, save: SaveAdapter, size: int) -> int:
        """Answers with the adapter that `save` writes from now on; returns its bytes.

        On CPU an answer then depends on what else is in the batch, in its last bits: vLLM's layers of adapters do.
        """
        from vllm.lora.request import LoRARequest

        def load(folder: Path) -> None:  # under a new number, so that nothing of the old one is found in a cache
            old = self._adapter
            self._adapter = LoRARequest("adapter", old.lora_int_id + 1 if old else 1, str(folder))
            self._engine.add_lora(self._adapter)
            if old:
                self._engine.remove_lora(old.lora_int_id)

        with self._limit.watch():
            content = self._files.replace(save, size, load)
        self._reset_caches()
        return content

    def _make_batch_invariant(self) -> None:
        """Makes answers on CPU independent of what else is in the batch; on GPUs rounding depends on it."""
        import torch

        if not torch.cuda.is_available():
            self._llm.apply_model(make_batch_invariant)

    def _reset_caches(self) -> None:
        """Empties the caches of prompts, images and image features; old features belong to the old vision tower."""
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM can't empty its prefix cache: answers of an earlier call are still being written")
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()

    def sleep(self) -> None:
        """Moves the weights to host memory and drops the cache (vLLM's level 1). Does nothing on CPU."""
        if self._sleeps:
            self._llm.sleep(level=1)

    def wake(self) -> None:
        """Takes the GPU memory back. Does nothing on CPU."""
        if self._sleeps:
            self._llm.wake_up()

    def close(self) -> None:
        """Frees the weights and the cache; the engine cannot be used afterwards. Process groups stay.

        After a request to stop nothing is freed: the process ends anyway, and its grace may be shorter than the 3 s
        that the collector of cycles takes.
        """
        self._limit.close()
        self._files.close()
        if STOP.code is not None:
            self._engine.engine_core._finalizer.detach()
            return
        self._engine.engine_core._finalizer()
        del self._engine, self._llm
        gc.unfreeze()  # vLLM calls gc.freeze() after loading, which hides these objects from the collector
        gc.collect()


@contextlib.contextmanager
def _refusing(request: Request) -> Iterator[None]:
    """Raises what vLLM and the chat raise for a prompt that they cannot take as RequestError."""
    from vllm.exceptions import VLLMClientError

    try:
        yield
    except (ValueError, OSError, VLLMClientError) as error:
        raise RequestError(f"question {request.name}: {' '.join(str(error).split())}") from error


def _shut_down_core(core: Any) -> None:
    """Shuts down an engine's core as vLLM does, but keeps the process groups."""
    core.structured_output_manager.clear_backend()
    core.model_executor.shutdown()
    core.scheduler.shutdown()
