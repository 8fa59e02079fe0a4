"""One question to a checkpoint, answered by vLLM in full precision.

python -m stages.engines.sample_pass ASKED ANSWERED    files in JSON; a process of its own, whose memory is free then
"""

import os
import sys
from pathlib import Path
from typing import Any

from stages.config.engines import Vllm
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.corpora.images import open_image
from stages.corpora.markers import IMAGE_MARKER
from stages.engines.arguments import GIB, encode_request, make_engine_arguments, make_sampling_arguments
from stages.engines.engine import Request
from stages.job.files import read_json, write_json
from stages.job.host_memory import measure_free_memory
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reference_pass import ANSWER_TOKENS, QUESTION, Pass, make_trial_picture, read_checkpoint

_BESIDE = 3 * GIB  # of the process: libraries, KV cache on CPU, activations of one short prompt


def explain_no_room(values: int, value_bytes: int = 4) -> str | None:
    """Returns why `values` weights of `value_bytes` do not fit this machine: GPU 0, without one the host memory."""
    import torch

    needed = value_bytes * values + _BESIDE
    free, where = (torch.cuda.mem_get_info(0)[0], "GPU 0") if torch.cuda.is_available() else (measure_free_memory(), "")
    if needed <= free:
        return None
    return f"full precision needs {needed / 1e9:.0f} GB of memory, more than is free{where and f' on {where}'}"


def sample_answer(checkpoint: Checkpoint) -> Pass | str:
    """Returns vLLM's most likely answer of at most ANSWER_TOKENS tokens, or why there is no room for it."""
    from stages.vlm.reader import load_reader

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's core runs in this process
    reader = load_reader(checkpoint)
    images = [make_trial_picture()] if reader.image_token_id >= 0 else []
    messages = [{"role": "user", "content": f"{IMAGE_MARKER * len(images)}{QUESTION}"}]
    if reader.count_prompt_tokens(messages, images) + ANSWER_TOKENS > checkpoint.context_tokens:
        return f"a short question with a picture does not fit context_tokens = {checkpoint.context_tokens}"
    import vllm

    settings = Vllm(kind="vllm", sequences=1)
    engine = vllm.LLM(
        **make_engine_arguments(checkpoint, Runtime(kv_cache_gib=1), settings, reader, log_probs=True),
        mm_processor_cache_gb=0,
        use_tqdm_on_load=False,
    )
    asked = Request("trial", messages, images, Sampling(temperature=0.0, max_tokens=ANSWER_TOKENS), log_probs=True)
    prompt: dict[str, Any] = {"prompt_token_ids": encode_request(asked, reader.chat)}
    if images:
        prompt["multi_modal_data"] = {"image": [open_image(image) for image in images]}
    how = vllm.SamplingParams(**make_sampling_arguments(asked, reader.chat, float("-inf")))
    (output,) = engine.generate([prompt], how, use_tqdm=False)  # type: ignore[list-item]
    answer = output.outputs[0]
    pairs = zip(answer.token_ids, answer.logprobs or (), strict=True)
    log_probs = [float(known[token].logprob) for token, known in pairs]
    return Pass(list(output.prompt_token_ids or ()), list(answer.token_ids), log_probs)


def main(asked: Path, answered: Path) -> None:
    """Writes the pass of the question in `asked`, or the reason why there is none, to `answered`."""
    given = read_json(asked)
    found = explain_no_room(given["values"]) or sample_answer(read_checkpoint(given))
    write_json(answered, {"skipped": found} if isinstance(found, str) else vars(found))
    sys.stdout.flush()
    os._exit(0)  # vLLM's threads and finalizers have nothing left to do


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
