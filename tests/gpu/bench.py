"""The measurements of tests/gpu/run, one shape after the other."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from stages.groups.log_probs import response_log_probs
from stages.policy.batch import RewardedGroup
from stages.vlm.reader import Network
from tests.gpu.attention import ALTERNATIVES, FORWARD_ONLY_ON_CPU, Attention, using
from tests.gpu.lora import adapt
from tests.gpu.shapes import SHAPES, TINY_SHAPES, Shape, answers_of, model_of, network_of, prompt_of
from tests.gpu.step import (
    PlainTrainer,
    Unadapted,
    default_device,
    matmul_rate,
    pack_of_groups,
    peak_rate,
    rewards_of,
    timed,
)
from tests.performance.log_prob_head import compare

AGREE = {torch.float32: 1e-4, torch.bfloat16: 0.5}  # of a log-prob, between ways of attending; bf16 rounds to 2^-8


def run_all(*, tiny: bool, only: str, repeats: int) -> dict[str, Any]:
    """Measures and prints every shape; returns the figures by shape and way.

    Raises AssertionError when two ways of attending, or shared and repeated prompt, do not give the same log-probs.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = peak_rate(name)
    found: dict[str, Any] = {"device": name}
    with default_device(device):
        rate = matmul_rate(8192 if device == "cuda" else 64)
        versions = (
            f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
        )
        print(f"{name}; {versions}; {dtype}")
        print(f"bf16 product of squares: {rate / 1e12:.3f} TFLOP/s; datasheet {peak / 1e12:.0f}")
        if device == "cpu":
            print("CPU with tiny shapes: this shows that every path runs; the figures mean nothing")
        for shape in TINY_SHAPES if tiny else SHAPES:
            if only in shape.name:
                found[shape.name] = one_shape(shape, dtype, peak or rate, repeats, device)
        found["head"] = heads(tiny)
    return found


def one_shape(shape: Shape, dtype: torch.dtype, peak: float, repeats: int, device: str) -> dict[str, Any]:
    """All ways of making one step with this model."""
    torch.manual_seed(0)
    model = model_of(shape, dtype)
    student = network_of(model)
    if shape.lora_rank:
        adapt(model, student.text, shape.lora_rank)
        reference: Network = Unadapted(student.family, model, student.image_token_id)
    else:
        reference = network_of(model_of(shape, dtype))
        reference.model.load_state_dict(model.state_dict())
        reference.model.requires_grad_(False)
    trainer = PlainTrainer(model)
    everything = sum(parameter.numel() for parameter in model.parameters())
    print(f"{shape.name}: {everything / 1e9:.3f} billion parameters, {trainer.trained / 1e9:.3f} of them trained")
    print(f"  P {shape.prompt_tokens}, R {shape.length}, {shape.rows} rows; medians of {repeats} steps after two")
    prompt, answers = prompt_of(shape, dtype), answers_of(shape)
    shared, repeated = (rewards_of(prompt, answers, shared=kind) for kind in (True, False))
    pack = pack_of_groups(shared)
    attends = {way: make(pack.mask, shape.prompt_tokens, shape.length) for way, make in ALTERNATIVES.items()}
    agree(student, shared, repeated, attends, AGREE[dtype])
    found: dict[str, Any] = {}

    def note(way: str, groups: Sequence[RewardedGroup], tokens_per_pack: int = 10**7) -> None:
        measured = timed(shape, student, reference, trainer, groups, tokens_per_pack, repeats)
        print(f"  {way:34} {measured.line(shape, peak)}", flush=True)
        found[way] = measured.__dict__

    note("shared prompt", shared)
    note("repeated prompt, 8 rows a pack", repeated)
    note("repeated prompt, 1 row a pack", repeated, max(64, shape.prompt_tokens + shape.length))
    for way, attend in attends.items():
        if device == "cuda" or way not in FORWARD_ONLY_ON_CPU:
            with using(attend):
                note(f"shared prompt, {way}", shared)
    return found


@torch.no_grad()
def agree(
    student: Network,
    shared: Sequence[RewardedGroup],
    repeated: Sequence[RewardedGroup],
    attends: Mapping[str, Attention],
    allowed: float,
) -> None:
    """Raises AssertionError where the repeated prompt or another way of attending gives other log-probs."""
    expected = response_log_probs(student, pack_of_groups(shared))
    others = {"repeated prompt": response_log_probs(student, pack_of_groups(repeated))}
    for way, attend in attends.items():
        with using(attend):
            others[way] = response_log_probs(student, pack_of_groups(shared))
    for way, log_probs in others.items():
        difference = float((log_probs - expected).abs().max())
        print(f"  {way}: largest difference of a log-prob {difference:.1e} (allowed {allowed:.0e})")
        assert difference < allowed, f"{way} does not give the log-probs of the shared prompt with group_attention"


def heads(tiny: bool) -> list[dict[str, Any]]:
    """Log-prob head against full logits at 3B's and 7B's width."""
    sizes = ((40, 16, 503),) if tiny else ((1600, 2048, 151936), (8192, 3584, 152064))
    return [compare(rows, hidden, vocabulary) for rows, hidden, vocabulary in sizes]
