"""Poisons for training: each makes one number NaN or infinite at a chosen step."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import ril
from stages.adversary import adversary as adversary_module
from stages.adversary import discriminator_model
from stages.policy import policy as policy_module
from stages.training import sft
from stages.training.trainer import Trainer

VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
Patch = Callable[[pytest.MonkeyPatch, float, int], None]


def poison_file(path: Path, value: float, name: str | None = None) -> str:
    """Puts `value` into one tensor of a safetensors file (the first MLP, or `name`); returns the tensor's name."""
    tensors = load_file(path)
    name = name or next(key for key in tensors if "mlp" in key or key == "weight")
    tensors[name].view(-1)[0] = value
    path.chmod(0o644)
    path.unlink()  # never through a link into a cache
    save_file(tensors, path, metadata={"format": "pt"})
    return name


def _count(step: int) -> Iterator[bool]:
    yield from (number == step for number in range(10**9))


def wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, at: int, spoil: Callable[..., Any]) -> None:
    """Replaces `owner.name`: its call number `at` (from 0) returns `spoil(result, *arguments)`."""
    original, due = getattr(owner, name), _count(at)

    @functools.wraps(original)
    def spoiled(*arguments: Any, **named: Any) -> Any:
        found = original(*arguments, **named)
        return spoil(found, *arguments) if next(due) else found

    patch.setattr(owner, name, spoiled)


def spoil(found: torch.Tensor, value: float) -> torch.Tensor:
    """Returns the tensor with `value` in the first place."""
    mask = torch.zeros(found.numel(), dtype=torch.bool)
    mask[0] = True
    return torch.where(mask.view(found.shape), torch.full_like(found, value), found)


def poison_loss(patch: pytest.MonkeyPatch, value: float, at: int) -> None:
    """The loss of SFT; its gradient stays finite."""
    wrap(patch, sft, "sft_loss", at, lambda loss, *_: loss + value)


def poison_log_probs(patch: pytest.MonkeyPatch, value: float, at: int) -> None:
    """One log-probability of SFT."""
    wrap(patch, sft, "response_log_probs", at, lambda found, *_: spoil(found, value))


def poison_discriminator_loss(patch: pytest.MonkeyPatch, value: float, at: int) -> None:
    """The loss of the discriminator."""
    wrap(patch, discriminator_model, "discriminator_loss", at, lambda loss, *_: loss + value)


def poison_logit(patch: pytest.MonkeyPatch, value: float, at: int) -> None:
    """One logit of the discriminator."""
    wrap(patch, discriminator_model.DiscriminatorModel, "forward", at, lambda found, *_: spoil(found, value))


def poison_score(patch: pytest.MonkeyPatch, value: float, at: int) -> None:
    """One logit that becomes a reward."""
    wrap(patch, adversary_module, "score_texts", at, lambda logits, *_: [value, *logits[1:]])


def poison_entropies(patch: pytest.MonkeyPatch, value: float, at: int) -> None:
    """One log-probability of the policy."""
    wrap(patch, policy_module, "token_entropies", at, lambda found, *_: (spoil(found[0], value), found[1]))


def poison_reference(patch: pytest.MonkeyPatch, value: float, at: int) -> None:
    """One log-probability of the reference model."""
    wrap(patch, policy_module, "token_log_probs", at, lambda found, *_: spoil(found, value))


def poison_reference_pass(patch: pytest.MonkeyPatch, value: float, at: int) -> None:
    """All log-probabilities of one pass of the reference model: equal responses share theirs, so one may be lost."""
    wrap(patch, policy_module, "token_log_probs", at, lambda found, *_: torch.full_like(found, value))


def poison_reward(patch: pytest.MonkeyPatch, value: float, at: int) -> None:
    """One reward of the loop."""

    def break_one(groups: Any, *_: Any) -> Any:
        return [[replace(one, reward=value) for one in group] for group in groups]

    wrap(patch, ril, "score_groups", at, break_one)


def poison_gradient(patch: pytest.MonkeyPatch, value: float, at: int) -> None:
    """One gradient."""

    def break_one(found: Any, trainer: Trainer, *_: Any) -> Any:
        weight = next(weight for weight in trainer._trained if weight.grad is not None)
        assert weight.grad is not None
        weight.grad.view(-1)[0] = value
        return found

    wrap(patch, Trainer, "backward", at, break_one)


def poison_weight(patch: pytest.MonkeyPatch, value: float, at: int) -> None:
    """One weight, after the update."""

    def break_one(found: Any, trainer: Trainer, *_: Any) -> Any:
        trainer._trained[0].data.view(-1)[0] = value
        return found

    wrap(patch, Trainer, "step", at, break_one)
