"""The student's update of the loop, on its rewarded groups (Eq. 2)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from stages.groups import Group, Pack, predicting_states, token_entropies, token_full_kl, token_log_probs
from stages.imitation.objective import Policy, k3, policy_loss, rollout_weights, row_lengths
from stages.imitation.rewards import STUDENT, Rewarded
from stages.job.blocks import Ril
from stages.job.switches import PAPER, Objective
from stages.training import Idle, Trainer, even_packs, ranks
from stages.vlm import Network, Prompt


@dataclass(frozen=True)
class Rewards:
    """One question's prompt with the rows that stayed in its group."""

    prompt: Prompt
    rows: tuple[Rewarded, ...]


@dataclass(frozen=True)
class Batch:
    """A pack of the step with what does not change over its inner updates."""

    pack: Pack
    rows: Sequence[Rewarded]  # those of the pack
    features: Tensor | None  # of its images, where the tower is frozen
    reference_states: Tensor | None  # [N, hidden], only where KL is over the whole vocabulary
    reference: Tensor  # [N]: log p under the SFT student
    student_rows: Tensor  # [N] bool

    def per_token(self, values: Sequence[float]) -> Tensor:
        """Values of rows as values [N] of their tokens."""
        return torch.tensor(values)[self.pack.response]

    def tokens_with(self, term: str) -> Tensor | None:
        """Mask [N] of the tokens of rows with this term of the loss; None where there are none."""
        chosen = [row.term == term for row in self.rows]
        return torch.tensor(chosen)[self.pack.response] if any(chosen) else None


@dataclass
class Totals:
    """Sums over the step's tokens of what is logged."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Adds the values [N] at the masked tokens."""
        self.sums[name] += float(values[mask].sum())
        self.tokens[name] += int(mask.sum())

    def means(self) -> dict[str, float]:
        """Mean of each name over its tokens, those of all ranks; a name without tokens is left out."""
        parts = ranks().of_all((dict(self.sums), dict(self.tokens)))
        names = dict.fromkeys(name for sums, _ in parts for name in sums)
        tokens = {name: sum(counts.get(name, 0) for _, counts in parts) for name in names}
        return {name: sum(sums.get(name, 0.0) for sums, _ in parts) / tokens[name] for name in names if tokens[name]}


def update_student(
    student: Network,
    trainer: Trainer,
    reference: Network,
    groups: Sequence[Rewards],
    block: Ril,
    rate: float,
    objective: Objective = PAPER,
    idle: Idle | None = None,
) -> dict[str, float]:
    """`inner_updates` steps of Eq. 2 on all rows of the groups; returns what to log of the first of them.

    The groups are this rank's; loss, gradient and what is logged are those of all ranks' rows (`idle` fills up their passes).
    With a frozen vision tower its features are computed once and serve student and reference alike. Old log-probabilities are
    those of the first inner update itself, so that no pass is run for them whatever mu is; at mu = 1 the ratio is exactly 1.
    """
    kept = [group for group in groups if group.rows]
    rows = int(ranks().total(sum(len(group.rows) for group in kept)))
    if not rows:
        return {"kl": float("nan"), "grad_norm": 0.0}
    batches = _batches(student, trainer, reference, kept, block, objective, idle)
    normaliser = float(rows * (block.sampling.max_tokens if objective.loss_normaliser == "constant" else 1))
    old: list[Tensor] = []
    logged: dict[str, float] = {}
    for inner in range(block.inner_updates):
        totals = Totals()
        for number, batch in enumerate(batches):
            before = old[number] if inner else None
            loss, log_probs = trainer.forward(
                partial(_loss, student, reference, batch, before, block, objective, normaliser, totals)
            )
            trainer.backward(loss, last=number == len(batches) - 1)
            if inner == 0:
                old.append(log_probs)
        norm = trainer.step(rate)
        if inner == 0:
            logged = {"grad_norm": norm, "learning_rate": rate, **totals.means()}
        else:  # what the last inner update saw: how far mu > 1 carried the student from its own samples
            logged |= {f"{name}/last": totals.means()[name] for name in ("ratio", "clip_ratio")}
    return logged


def _temperature(block: Ril) -> float:
    """At which log-probabilities are taken: that of sampling, on all sides (trap T14)."""
    return block.sampling.temperature or 1.0


def _loss(
    student: Network,
    reference: Network,
    batch: Batch,
    before: Tensor | None,
    block: Ril,
    objective: Objective,
    normaliser: float,
    totals: Totals,
) -> tuple[Tensor, Tensor]:
    """The batch's part of the loss, and its log-probabilities [N] without gradient; `before` are those of the first inner update.

    Without `before` this is the first one: they are the log-probabilities themselves, so that the ratio is exactly 1.
    """
    temperature = _temperature(block)
    states = predicting_states(student, batch.pack, batch.features)
    log_probs = token_log_probs(states, student.head.weight, batch.pack.targets, temperature)
    old = log_probs.detach() if before is None else before
    full = _full_kl(student, reference, states, batch, temperature)
    loss, seen = policy_loss(log_probs, old, _policy(batch, old, block, objective, normaliser, full))
    if not batch.rows:  # an idle pass
        return loss, old
    for name, value in seen.items():
        totals.sums[name] += value * len(batch.pack.targets)
        totals.tokens[name] += len(batch.pack.targets)
    if before is None:
        gap = k3(log_probs.detach(), batch.reference)
        entropy = token_entropies(states.detach(), student.head.weight, temperature)
        for side, mask in (("student", batch.student_rows), ("teacher", ~batch.student_rows)):
            totals.add(f"kl/{side}", gap, mask)
            totals.add(f"entropy/{side}", entropy, mask)
    return loss, log_probs.detach()


def _batches(
    student: Network,
    trainer: Trainer,
    reference: Network,
    groups: Sequence[Rewards],
    block: Ril,
    objective: Objective,
    idle: Idle | None,
) -> list[Batch]:
    temperature = _temperature(block)
    packed = [Group(g.prompt, tuple(r.row.token_ids for r in g.rows)) for g in groups]
    tower = student.trains_vision or trainer.sharded  # a frozen one that is sharded runs on all ranks or none
    whole = "full" in (objective.kl, objective.kl_on_teacher_rows)
    found = []
    for pack in even_packs(packed, block.tokens_per_pack, idle, tower):
        own = [row for number in pack.groups for row in groups[number].rows]
        features = trainer.forward(partial(shared_features, student, pack)) if block.freeze_vision else None
        with torch.no_grad():
            # With a trained tower the reference sees through its own, untrained one.
            states = predicting_states(reference, pack, features)
            log_probs = token_log_probs(states, reference.head.weight, pack.targets, temperature)
        by_student = torch.tensor([row.row.source == STUDENT for row in own], dtype=torch.bool)[pack.response]
        found.append(Batch(pack, own, features, states if whole else None, log_probs, by_student))
    return found


def _full_kl(student: Network, reference: Network, states: Tensor, batch: Batch, temperature: float) -> Tensor | None:
    if batch.reference_states is None:
        return None
    return token_full_kl(states, student.head.weight, batch.reference_states, reference.head.weight, temperature)


def _policy(batch: Batch, old: Tensor, block: Ril, objective: Objective, normaliser: float, full: Tensor | None) -> Policy:
    response = batch.pack.response
    weights = None
    if objective.loss_normaliser == "row":
        weights = 1.0 / row_lengths(response)[response]
    if (outside := batch.tokens_with("none")) is not None:
        weights = torch.where(outside, 0.0, 1.0 if weights is None else weights)
    elsewhere = None if objective.kl_on_teacher_rows == "same" else ~batch.student_rows
    there = objective.kl_on_teacher_rows
    return Policy(
        advantages=batch.per_token([row.advantage for row in batch.rows]),
        reference=batch.reference,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        kl_weight=block.kl_weight,
        normaliser=normaliser,
        ratio=objective.ratio,
        kl=objective.kl,
        response=response,
        weights=weights,
        gain_weights=_corrections(batch, old, objective),
        luffy=batch.tokens_with("luffy"),
        luffy_gamma=objective.luffy_gamma,
        sft=batch.tokens_with("sft"),
        kl_elsewhere=elsewhere,
        kl_there=None if there in ("same", "none") else there,  # type: ignore[arg-type]
        full_kl=full,
    )


def _corrections(batch: Batch, old: Tensor, objective: Objective) -> Tensor | None:
    """Weights for the gap between engine and trainer; None without the switch.

    Raises ValueError when a student row came without the engine's log-probabilities.
    """
    if objective.rollout_correction == "none":
        return None
    sampled: list[float] = []
    for row in batch.rows:
        if row.row.source == STUDENT and row.row.sampled_log_probs is None:
            raise ValueError(
                f"ril.rollout_correction is {objective.rollout_correction!r}, but the engine gave no log-probs; set it to none"
            )
        sampled += row.row.sampled_log_probs or [0.0] * len(row.row.token_ids)
    engine = torch.tensor(sampled, dtype=old.dtype)
    kind, cap = objective.rollout_correction, objective.rollout_cap
    return rollout_weights(old, engine, batch.student_rows, batch.pack.response, kind, cap)


def shared_features(network: Network, pack: Pack) -> Tensor | None:
    """Image features of a pack without gradient; None for a pack without images."""
    if pack.pixels is None:
        return None
    with torch.no_grad():
        return network.features(pack.pixels)
