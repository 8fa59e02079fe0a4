"""The measurements of tests/gpu/run, the cheapest first."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stages.adversary.discriminator_model import DiscriminatorModel
from stages.groups.log_probs import response_log_probs
from stages.groups.pack import Group, Pack, make_packs
from stages.policy.batch import RewardedGroup
from stages.policy.policy import Policy
from stages.vlm.reader import Prompt
from tests.gpu.attention import ALTERNATIVES, FORWARD_ONLY_ON_CPU, Attention, using
from tests.gpu.ledger import Figures, Ledger, free_memory
from tests.gpu.shapes import SHAPES, TINY_SHAPES, Shape, answers_of, prompt_of
from tests.gpu.step import (
    RATE,
    PlainTrainer,
    block_of,
    count_groups,
    count_layer_weights,
    default_device,
    matmul_rate,
    open_loop,
    pack_of_groups,
    peak_rate,
    rewards_of,
    step_flops,
    time_calls,
)
from tests.gpu.weights import send_weights
from tests.performance.log_prob_head import compare

AGREE = {torch.float32: 1e-4, torch.bfloat16: 0.5}  # of a log-prob, between ways of attending; bf16 rounds to 2^-8
FRAME_TOKENS = 60  # of the discriminator's prompt around a text
HEADS = {
    False: ((1600, 2048, 151936), (8192, 3584, 152064)),
    True: ((40, 16, 503),),
}  # rows, width, vocabulary; by tiny
WEIGHTS = {False: ((8192, 32),), True: ((40, 9),)}  # width, layers; by tiny; 6.4 GB


def run_all(*, tiny: bool, only: str, repeats: int, minutes: float, path: Path | None) -> Ledger:
    """Measures and prints every shape; each figure is in the file `path` as soon as it is there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    ledger = Ledger(path, minutes)
    if device == "cpu":
        print("CPU with tiny shapes: this shows that every path runs; the figures mean nothing")
    with default_device(device):
        rate = matmul_rate(8192 if device == "cuda" else 64)
        peak = peak_rate(name) or rate
        told = {"device": name, "versions": versions, "dtype": str(dtype), "matmul_flops": rate, "peak_flops": peak}
        ledger.note("machine", "", told)
        for sizes in HEADS[tiny]:
            ledger.measure("head", " x ".join(map(str, sizes)), partial(compare, *sizes))
        for width, layers in WEIGHTS[tiny]:
            ledger.measure("weights", "to another process", partial(send_weights, width, layers))
        for shape in TINY_SHAPES if tiny else SHAPES:
            if only in shape.name:
                _measure_shape(ledger, shape, dtype, peak, repeats)
                free_memory()
    return ledger


def _measure_shape(ledger: Ledger, shape: Shape, dtype: torch.dtype, peak: float, repeats: int) -> None:
    """One update of the whole loop, then ways of making the policy's step; those that need the most memory last."""
    opened: list[Bench] = []

    def open_bench() -> Figures:
        opened.append(Bench(shape, dtype, peak, repeats))
        return opened[0].describe()

    ledger.measure(shape.name, "models", open_bench)
    if opened:
        for way, compute in opened[0].iter_measurements():
            ledger.measure(shape.name, way, compute)


class Bench:
    """The models of a loop with random weights, and one question of P tokens with 2G answers of R."""

    def __init__(self, shape: Shape, dtype: torch.dtype, peak: float, repeats: int) -> None:
        torch.manual_seed(0)
        self._shape, self._dtype, self._peak, self._repeats = shape, dtype, peak, repeats
        self._student, self._reference, critic = open_loop(shape, dtype)
        self._discriminator = DiscriminatorModel(critic, seed=0)
        self._trainer = PlainTrainer(one for one in self._student.trained.parameters() if one.requires_grad)
        self._critic = PlainTrainer(one for one in self._discriminator.trained.parameters() if one.requires_grad)
        prompt, self._answers = prompt_of(shape, dtype), answers_of(shape)
        self._shared, self._repeated = (rewards_of(prompt, self._answers, shared=kind) for kind in (True, False))

    def describe(self) -> Figures:
        """Parameters of the student, of them trained, and the memory of all models."""
        everything = sum(parameter.numel() for parameter in self._student.model.parameters())
        found = {"parameters": everything, "trained": self._trainer.trained, "prompt": self._shape.prompt_tokens}
        found |= {"length": self._shape.length, "rows": self._shape.rows}
        cuda = torch.cuda.is_available()
        return {**found, "allocated_gib": torch.cuda.memory_allocated() / 2**30 if cuda else 0.0}

    def iter_measurements(self) -> Iterator[tuple[str, Callable[[], Figures]]]:
        """Yields each measurement with its name, in the order in which they are made."""
        pack = pack_of_groups(self._shared)
        tokens, length = self._shape.prompt_tokens, self._shape.length
        attends = {way: make(pack.mask, tokens, length) for way, make in ALTERNATIVES.items()}
        yield "one update of the loop", self._measure_loop
        yield "ways of attending agree", partial(self._compare_ways, attends)
        yield "shared prompt", partial(self._measure_policy, self._shared)
        for way, attend in attends.items():
            if torch.cuda.is_available() or way not in FORWARD_ONLY_ON_CPU:
                yield f"shared prompt, {way}", partial(self._measure_attention, attend)
        yield (
            "repeated prompt, 1 row a pack",
            partial(self._measure_policy, self._repeated, max(64, tokens + length)),
        )
        yield "repeated prompt, 8 rows a pack", partial(self._measure_policy, self._repeated)

    def _measure_policy(self, groups: Sequence[RewardedGroup], tokens_per_pack: int = 10**7) -> Figures:
        """Reference pass and update of the student on these groups (Algorithm 2, line 7)."""
        seconds, memory = time_calls(partial(self._update, groups, tokens_per_pack), self._repeats)
        made = count_groups(groups)
        tokens, flops = sum(group.tokens for group in made), step_flops(self._shape, self._student, made)
        answers = self._shape.rows * self._shape.length
        found = {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "answer_tokens_per_second": answers / seconds,
        }
        return {**found, "flops": flops, "mfu": flops / seconds / self._peak, "peak_gib": memory}

    def _measure_attention(self, attend: Attention) -> Figures:
        with using(attend):
            return self._measure_policy(self._shared)

    def _measure_loop(self) -> Figures:
        """Update and scores of the discriminator on the 2G texts, then `_measure_policy`, on the same models."""
        frame = torch.randint(8, self._shape.vocabulary, (FRAME_TOKENS,))
        places = torch.arange(FRAME_TOKENS).expand(3, -1).clone()
        group = Group(Prompt(frame, places, None), tuple(self._answers))
        (pack,) = make_packs([group], 10**9)
        sides = torch.arange(len(self._answers)) < len(self._answers) // 2

        def learn_and_score() -> None:
            self._critic.backward(self._judge(pack, sides.float()), last=True)
            self._critic.step(RATE)
            with torch.no_grad():
                self._discriminator(pack)

        learned, memory = time_calls(learn_and_score, self._repeats)
        # a pass forward and one backward, of all weights two, and the pass that scores
        passes = 3 if self._shape.lora_rank else 4
        flops = 2.0 * count_layer_weights(self._student) * group.tokens * passes
        policy = self._measure_policy(self._shared)
        seconds = learned + policy["seconds"]
        found = {"seconds": seconds, "discriminator_seconds": learned, "policy_seconds": policy["seconds"]}
        found |= {"mfu": (flops + policy["flops"]) / seconds / self._peak}
        return {**found, "peak_gib": max(memory, policy["peak_gib"])}

    def _judge(self, pack: Pack, sides: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(self._discriminator(pack), sides)

    def _update(self, groups: Sequence[RewardedGroup], tokens_per_pack: int) -> None:
        block = block_of(self._shape, tokens_per_pack)
        Policy(self._student, self._reference, self._trainer, block).update(groups, RATE)  # type: ignore[arg-type]

    @torch.no_grad()
    def _compare_ways(self, attends: Mapping[str, Attention]) -> Figures:
        """Raises AssertionError where the repeated prompt or another way of attending gives other log-probs."""
        expected = response_log_probs(self._student, pack_of_groups(self._shared))
        others = {"repeated prompt": response_log_probs(self._student, pack_of_groups(self._repeated))}
        for way, attend in attends.items():
            with using(attend):
                others[way] = response_log_probs(self._student, pack_of_groups(self._shared))
        found = {way: float((one - expected).abs().max()) for way, one in others.items()}
        worst = max(found, key=lambda way: found[way])
        assert found[worst] < AGREE[self._dtype], f"{worst}: log-probs differ by {found[worst]:.1e}"
        return found
