"""Groups of a step on their way to the student's update: prepared without rewards, then with them, then packed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.groups.pack import Group, Pack
from stages.groups.response import STUDENT, TEACHERS
from stages.job.metric_names import by_source
from stages.policy.rewards import ScoredResponse
from stages.training.ranks import get_ranks
from stages.vlm.reader import Prompt


@dataclass(frozen=True)
class ReferenceCache:
    """What the update needs of one group and no reward changes."""

    features: Tensor | None  # [image tokens, hidden] of its images, where the tower is frozen
    log_probs: Mapping[tuple[int, ...], Tensor]  # by the token ids of a response: log p [tokens] under the SFT student
    states: Mapping[tuple[int, ...], Tensor]  # and [tokens, hidden] that predict them; only for KL over the vocabulary


@dataclass(frozen=True)
class RewardedGroup:
    """One question's prompt with the responses that stayed in its group."""

    prompt: Prompt
    responses: tuple[ScoredResponse, ...]
    cache: ReferenceCache | None = None  # from `Policy.cache_reference`; without it the update runs that pass itself

    @property
    def group(self) -> Group:
        """The responses as they are packed."""
        return Group(self.prompt, tuple(one.response.token_ids for one in self.responses))


@dataclass(frozen=True)
class PreparedGroup:
    """One question of this rank's share, before rewards are known."""

    place: int  # of the question in the step
    prompt: Prompt
    cache: ReferenceCache

    def add_rewards(self, groups: Sequence[Sequence[ScoredResponse]]) -> RewardedGroup:
        """The same with its responses, out of those of all questions of the step."""
        return RewardedGroup(self.prompt, tuple(groups[self.place]), self.cache)


@dataclass(frozen=True)
class PolicyBatch:
    """A pack of the step with what does not change over its inner updates."""

    pack: Pack
    responses: Sequence[ScoredResponse]  # those of the pack
    features: Tensor | None  # of its images, where the tower is frozen
    reference_states: Tensor | None  # [N, hidden], only where KL is over the whole vocabulary
    reference: Tensor  # [N]: log p under the SFT student

    def expand_to_tokens(self, values: Sequence[float]) -> Tensor:
        """Values of responses as values [N] of their tokens."""
        return torch.tensor(values, device=self.pack.response.device)[self.pack.response]

    @property
    def student_tokens(self) -> Tensor:
        """Mask [N] of the tokens that the student wrote."""
        return self.mask_source(STUDENT)

    def mask_source(self, source: str) -> Tensor:
        """Mask [N] of the tokens that `source` wrote."""
        wrote = [one.response.source == source for one in self.responses]
        return torch.tensor(wrote, dtype=torch.bool, device=self.pack.response.device)[self.pack.response]

    def mask_term(self, term: str) -> Tensor | None:
        """Mask [N] of the tokens of responses with this term of the loss; None where there are none."""
        chosen = [one.term == term for one in self.responses]
        return torch.tensor(chosen, device=self.pack.response.device)[self.pack.response] if any(chosen) else None


@dataclass
class TokenMeans:
    """Sums over the step's tokens of what is logged."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, name: str, values: Tensor) -> None:
        """Adds the values."""
        self.sums[name] += float(values.sum())
        self.tokens[name] += len(values)

    def add_by_source(self, name: str, values: Tensor, batch: PolicyBatch) -> None:
        """Adds the values [N] under `name`/<source> for every source, and under `name`/TEACHERS for all teachers."""
        for source in dict.fromkeys(one.response.source for one in batch.responses):
            self.add(by_source(name, source), values[batch.mask_source(source)])
        self.add(by_source(name, TEACHERS), values[~batch.student_tokens])

    def compute_means(self) -> dict[str, float]:
        """Mean of each name over its tokens, those of all ranks; a name without tokens is left out."""
        parts = get_ranks().gather((dict(self.sums), dict(self.tokens)))
        names = dict.fromkeys(name for sums, _ in parts for name in sums)
        tokens = {name: sum(counts.get(name, 0) for _, counts in parts) for name in names}
        return {name: sum(sums.get(name, 0.0) for sums, _ in parts) / tokens[name] for name in names if tokens[name]}
