"""Optional packages that a setting of params.yaml needs."""

import importlib.util
from collections.abc import Iterator, Sequence

from flows.checks.finding import Finding
from stages.config.lora import get_quantization
from stages.config.params import Params

_TRAINING = ("warm_start", "discriminator", "ril")


def check_optional_packages(params: Params, runs: Sequence[str]) -> Iterator[Finding]:
    """Yields packages that settings of `runs` need and that are not installed."""
    training = tuple(run for run in runs if run in _TRAINING)
    if training and params.runtime.vision_attention == "flash_attention_2" and not has_module("flash_attn"):
        remedy = "pip install flash-attn, or take auto"
        yield Finding(
            "package",
            "missing",
            "runtime.vision_attention",
            "flash_attention_2 needs the package flash_attn",
            remedy,
            training,
        )
    for stage in training:
        kind = get_quantization(getattr(params, stage).lora)
        if kind != "none" and not has_module("bitsandbytes"):
            key = f"{stage}.lora.quantization"
            yield Finding(
                "package",
                "missing",
                key,
                f"{kind} needs the package bitsandbytes",
                "pip install -e '.[qlora]'",
                (stage,),
            )
    if not has_module("vllm"):
        yield Finding(
            "package", "missing", "vllm", "is not installed, and every answer is generated with it", "make install"
        )


def has_module(name: str) -> bool:
    """Whether a module can be imported; it is not."""
    return importlib.util.find_spec(name) is not None
