"""Which options of `vllm serve` a stage passes on: those that change speed and memory, by their full names.

vLLM reads abbreviations, underscores, `--option=value`, `--no-option`, `--option.key` and configuration files, and some
of its options load code, open other addresses or change the answers. So only what stands here passes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

Check = Callable[[str], bool]


def _accept_integer(low: int) -> Check:
    return lambda text: re.fullmatch(r"[0-9]{1,15}", text) is not None and int(text) >= low


def _accept_number(low: float, high: float) -> Check:
    return lambda text: re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) is not None and low <= float(text) <= high


def _accept_names(*names: str) -> Check:
    return lambda text: text in names


# Option, what its value must be, and the check; None for options without a value.
OPTIONS: Mapping[str, tuple[str, Check] | None] = {
    "--max-num-batched-tokens": ("an integer from 1", _accept_integer(1)),
    "--long-prefill-token-threshold": ("an integer from 0", _accept_integer(0)),
    "--num-gpu-blocks-override": ("an integer from 1", _accept_integer(1)),
    "--block-size": ("8, 16, 32, 64 or 128", _accept_names("8", "16", "32", "64", "128")),
    "--cpu-offload-gb": ("a number from 0 to 100000", _accept_number(0.0, 1e5)),
    "--kv-offloading-size": ("a number from 0 to 100000", _accept_number(0.0, 1e5)),
    "--mm-processor-cache-gb": ("a number from 0 to 100000", _accept_number(0.0, 1e5)),
    "--mm-processor-cache-type": ("lru or shm", _accept_names("lru", "shm")),
    "--mm-shm-cache-max-object-size-mb": ("an integer from 1", _accept_integer(1)),
    "--mm-encoder-tp-mode": ("weights or data", _accept_names("weights", "data")),
    "--max-parallel-loading-workers": ("an integer from 1", _accept_integer(1)),
    "--max-cudagraph-capture-size": ("an integer from 1", _accept_integer(1)),
    "--safetensors-load-strategy": ("lazy, eager or prefetch", _accept_names("lazy", "eager", "prefetch")),
    "--distributed-executor-backend": ("mp, ray or uni", _accept_names("mp", "ray", "uni")),
    "--renderer-num-workers": ("an integer from 1", _accept_integer(1)),
    "--attention-backend": (
        "FLASH_ATTN, FLASHINFER or TRITON_ATTN",
        _accept_names("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN"),
    ),
    "--enforce-eager": None,
    "--enable-prefix-caching": None,
    "--enable-chunked-prefill": None,
    "--enable-expert-parallel": None,
    "--disable-custom-all-reduce": None,
    "--async-scheduling": None,
    "--skip-mm-profiling": None,
}
# What people look for here and find elsewhere.
_ELSEWHERE = {
    "--tensor-parallel-size": "tensor_parallel of this engine",
    "--pipeline-parallel-size": "pipeline_parallel of this engine",
    "--data-parallel-size": "replicas of this engine",
    "--max-num-seqs": "sequences of this engine",
    "--port": "port of this engine",
    "--gpu-memory-utilization": "memory_share of this engine",
    "--enable-sleep-mode": "sharing of this engine",
    "--kv-cache-memory-bytes": "runtime.kv_cache_gib",
    "--dtype": "models.<id>.precision",
    "--max-model-len": "models.<id>.context_tokens",
    "--model": "models.<id>.path",
}


def check_server_arguments(args: Sequence[str]) -> Sequence[str]:
    """Returns `args`; raises ValueError with the first argument that is not passed on, and the remedy."""
    waiting = list(args)
    while waiting:
        option = waiting.pop(0)
        if option not in OPTIONS:
            raise ValueError(_explain(option))
        if (wanted := OPTIONS[option]) is not None:
            meaning, accept = wanted
            if not waiting:
                raise ValueError(f"{option} has no value; write {meaning} as the next entry")
            if not accept(value := waiting.pop(0)):
                raise ValueError(f"{option} is {value[:80]!r}; write {meaning}")
    return args


def _explain(option: str) -> str:
    plain = "--" + option.partition("=")[0].partition(".")[0].lstrip("-").replace("_", "-")
    if plain in OPTIONS:
        return f"{option[:80]!r} is not passed on; write {plain}, and its value as the next entry"
    if plain in _ELSEWHERE:
        return f"{option[:80]!r} is not passed on; set {_ELSEWHERE[plain]} instead"
    return f"{option[:80]!r} is not passed on to vLLM; these are: {', '.join(OPTIONS)}"


ServerArguments = Annotated[
    tuple[str, ...],
    AfterValidator(check_server_arguments),
    Field(strict=False, description="Additional arguments of `vllm serve`; they may affect speed only."),
]
