"""vLLM in this process: no second process, so that work goes in and comes out in one deterministic order.

Two engines (the student and the judge) may live in one process and be used in turn, beside training with torch;
weight updates of one do not touch the other (a test shows it). On CPU it is the CPU build of the same version.
"""

import gc
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stages.engines.engine import Answer, Request, RequestError
from stages.job.blocks import Runtime
from stages.vlm import Checkpoint, load_reader

if TYPE_CHECKING:
    from torch import Tensor

GIB = 1 << 30
SEQUENCES = 256  # answers written at a time; tiny model on CPU: 6,000 tokens/s with 64, 7,600 with 128, 8,400 with 256
CPU_BLOCK = 32  # tokens a prompt can share; with vLLM's 128 no tiny prompt shares anything: 5,000 tokens/s, not 7,100
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class VllmEngine:
    """One checkpoint, loaded by vLLM in this process.

    `sequences` answers are written at a time; more is faster until memory runs out. `gpus` is how many GPUs the model
    spans.
    """

    name = "vllm"

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime, sequences: int = SEQUENCES, gpus: int = 1) -> None:
        """Starts the engine: 4 s on CPU, 20 s the first time a kind of model is met, minutes for a large model."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's core runs in this process
        warnings.filterwarnings("ignore", message=".*reduce_op.* is deprecated", category=FutureWarning)
        import torch
        import vllm

        self.version = str(vllm.__version__)
        self.checkpoint = checkpoint
        reader = load_reader(checkpoint)
        self.chat = reader.chat
        context = checkpoint.context_tokens
        # With a seed for each request, a prompt that is read in two parts ends a CPU engine ("CPU Generator does not
        # use offset"): room for all prompts at once keeps them whole. It costs little, there is no warm-up on CPU.
        on_cpu: dict[str, Any] = {
            "enforce_eager": True,
            "kv_cache_memory_bytes": runtime.kv_cache_gib * GIB,
            "max_num_batched_tokens": sequences * context,
            "block_size": CPU_BLOCK,
        }
        on_gpu = {"gpu_memory_utilization": runtime.gpu_memory_utilization, "tensor_parallel_size": gpus}
        self._llm = vllm.LLM(
            model=str(checkpoint.weights),
            dtype=_DTYPES[checkpoint.precision],
            max_model_len=context,
            max_num_seqs=sequences,
            limit_mm_per_prompt={"video": 0} if reader.image_token_id >= 0 else {},
            generation_config="vllm",  # sampling is what the parameters say, not what a checkpoint suggests
            seed=0,
            disable_log_stats=True,
            use_tqdm_on_load=False,  # a bar of a second for a file on this disk
            **(on_gpu if torch.cuda.is_available() else on_cpu),
        )
        self._engine = self._llm.llm_engine

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields (index in `requests`, its n answers in order) as requests finish.

        All requests of a call are one wave: caches are emptied first and vLLM fills its batches from the wave alone, so
        equal calls give equal batches and, on CPU, equal bytes. Raises RequestError for a prompt that the model can't
        take; then nothing of the call goes on.
        """
        self._reset_caches()
        try:
            for index, request in enumerate(requests):
                self._add(index, request)
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    if output.finished:
                        yield int(output.request_id), [self._answer(output, one) for one in output.outputs]
        finally:
            if self._engine.has_unfinished_requests():
                self._engine.abort_request([str(index) for index in range(len(requests))])

    def _add(self, index: int, request: Request) -> None:
        from vllm.exceptions import VLLMClientError

        try:
            ids = self.chat.prompt_ids(request.messages, len(request.images))
            prompt: dict[str, Any] = {"prompt_token_ids": ids}
            if request.images:
                prompt["multi_modal_data"] = {"image": [_decoded(image) for image in request.images]}
            self._engine.add_request(str(index), prompt, self._sampling(request))
        except (ValueError, OSError, VLLMClientError) as error:
            raise RequestError(f"question {request.name}: {' '.join(str(error).split())}") from error

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked = request.sampling
        return SamplingParams(
            n=request.n,
            seed=request.seed if asked.temperature > 0 else None,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            repetition_penalty=asked.repetition_penalty,
            max_tokens=asked.max_tokens,
            stop_token_ids=self.chat.stop_token_ids,
            # A sampled image placeholder breaks every later forward pass over the text. Minus infinity holds for any
            # logits, greedy decoding included. No measurable cost at 300 ids (nor have bad
            # words and lists of allowed ids); with 150,000 ids it alone touches only the banned ones.
            logit_bias={token: float("-inf") for token in self.chat.banned_token_ids} or None,
            logprobs=0 if request.log_probs else None,  # 0: of the sampled token alone
            detokenize=False,  # the chat decodes, once, when an answer is whole
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _answer(self, output: Any, one: Any) -> Answer:
        ids = tuple(int(token) for token in one.token_ids)
        reason = str(one.finish_reason)
        seen = zip(one.token_ids, one.logprobs, strict=True) if one.logprobs else None
        log_probs = tuple(float(found[token].logprob) for token, found in seen) if seen else None
        return Answer(one.index, self.chat.decode(ids), ids, reason, len(output.prompt_token_ids), len(ids), log_probs)

    def update_weights(self, named: Iterable[tuple[str, "Tensor"]]) -> None:
        """Puts new weights into the running engine: 0.03 s for a tiny model.

        `named` is the whole `state_dict()` of the transformers model, head included also where it is tied to the
        embeddings: without it vLLM keeps the old head on CPU.
        """
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(named)})
        self._reset_caches()

    def _reset_caches(self) -> None:
        """Forgets prompts, images and features of images; the last of them would belong to an old vision tower."""
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM can't empty its prefix cache: answers of an earlier call are still being written")
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()

    def close(self) -> None:
        """Frees the weights and the cache; the object is of no use afterwards.

        vLLM's own shutdown, which also runs when an engine is garbage, destroys the process groups of this whole
        process: those of other engines and of the training. So it is taken apart here, and the groups stay.
        """
        client = self._engine.engine_core
        client._finalizer.detach()
        core = client.engine_core
        core.structured_output_manager.clear_backend()
        core.model_executor.shutdown()
        core.scheduler.shutdown()
        del self._engine, self._llm, client, core
        gc.unfreeze()  # vLLM froze what it loaded, which hides it from the collector
        gc.collect()


def _decoded(image: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(image)).convert("RGB")
