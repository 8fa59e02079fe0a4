"""Which tokens of a pack see each other: lengths of prompts and responses, and the forms that kernels take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupSpan:
    """Where one group stands in its pack."""

    start: int
    prompt: int  # tokens
    responses: tuple[int, ...]  # tokens of each

    @property
    def stop(self) -> int:
        """End of the group, exclusive."""
        return self.start + self.prompt + sum(self.responses)


@dataclass(frozen=True)
class Segments:
    """Queries and the keys that they see, as consecutive pieces of two tensors of tokens."""

    queries: tuple[int, ...]  # lengths
    keys: tuple[int, ...]  # lengths
    query_ends: Tensor  # [pieces + 1] int32, from 0
    key_ends: Tensor  # [pieces + 1] int32, from 0


@dataclass(frozen=True)
class TreePlan:
    """A pack for memory-linear kernels: every piece sees itself causally, and responses see their prompt besides."""

    own: Segments  # prompts and responses; a group of one response is one piece
    shared: Segments | None  # all responses of a group over its prompt; None if no group has several
    answers: Tensor  # int64: places of the queries of `shared` in the pack
    prompts: Tensor  # int64: places of its keys


@dataclass(frozen=True)
class GroupMask:
    """Mask of a pack: each group attends only to itself, each response to its prompt and itself."""

    spans: tuple[GroupSpan, ...]
    _masks: dict[torch.device, tuple[Tensor | None, ...]] = field(default_factory=dict, compare=False, repr=False)
    _plans: dict[torch.device, TreePlan] = field(default_factory=dict, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """Tokens of the pack."""
        return self.spans[-1].stop

    def get_masks(self, device: torch.device) -> tuple[Tensor | None, ...]:
        """Returns `make_tree_mask` of each group; made at the first call, since only some kernels need them."""
        if device not in self._masks:
            self._masks[device] = tuple(make_tree_mask(span.prompt, span.responses, device) for span in self.spans)
        return self._masks[device]

    def get_plan(self, device: torch.device) -> TreePlan:
        """Returns the pack's plan; made at the first call."""
        if device not in self._plans:
            self._plans[device] = _make_plan(self.spans, device)
        return self._plans[device]


def make_tree_mask(prompt: int, responses: Sequence[int], device: torch.device | None = None) -> Tensor | None:
    """Returns the mask [t, t] bool of one group: causal, and without attention between responses.

    Returns None (plain causal attention) for a group with at most one response.
    """
    if len(responses) <= 1:
        return None
    lengths = torch.tensor([prompt, *responses])
    owner = torch.repeat_interleave(torch.arange(-1, len(responses)), lengths)
    return torch.tril((owner[None, :] < 0) | (owner[:, None] == owner[None, :])).to(device)


def _make_plan(spans: Sequence[GroupSpan], device: torch.device) -> TreePlan:
    own: list[int] = []
    queries: list[int] = []
    keys: list[int] = []
    answers: list[Tensor] = []
    prompts: list[Tensor] = []
    for span in spans:
        if len(span.responses) <= 1:
            own.append(span.stop - span.start)
            continue
        own += [span.prompt, *span.responses]
        middle = span.start + span.prompt
        queries.append(span.stop - middle)
        keys.append(span.prompt)
        answers.append(torch.arange(middle, span.stop, device=device))
        prompts.append(torch.arange(span.start, middle, device=device))
    nothing = torch.zeros(0, dtype=torch.long, device=device)
    return TreePlan(
        _make_segments(own, own, device),
        _make_segments(queries, keys, device) if queries else None,
        torch.cat(answers) if answers else nothing,
        torch.cat(prompts) if prompts else nothing,
    )


def _make_segments(queries: Sequence[int], keys: Sequence[int], device: torch.device) -> Segments:
    ends = [torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device) for lengths in (queries, keys)]
    return Segments(tuple(queries), tuple(keys), *ends)
