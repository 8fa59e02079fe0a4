"""The student's update of the loop, on its rewarded groups (Eq. 2).

The reference pass needs no reward, so that it can run while the judge is at work (`reference_pass`).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from stages.config.ril import Ril
from stages.config.switches import PAPER, Objective
from stages.groups.log_probs import predicting_states, token_entropies, token_full_kl, token_log_probs
from stages.groups.pack import Group, Pack, packs
from stages.groups.response import STUDENT, TEACHERS
from stages.policy.loss import Policy, k3, policy_loss, rollout_weights, row_lengths
from stages.policy.rewards import Rewarded
from stages.training.passes import Idle, even_packs
from stages.training.ranks import ranks
from stages.training.trainer import Trainer
from stages.vlm.reader import Network, Prompt


@dataclass(frozen=True)
class Known:
    """What the update needs of one group and no reward changes."""

    features: Tensor | None  # [image tokens, hidden] of its images, where the tower is frozen
    reference: Mapping[tuple[int, ...], Tensor]  # by the token ids of a row: log p [tokens] under the SFT student
    states: Mapping[
        tuple[int, ...], Tensor
    ]  # and [tokens, hidden] that predict them; only for KL over the whole vocabulary


@dataclass(frozen=True)
class Rewards:
    """One question's prompt with the rows that stayed in its group."""

    prompt: Prompt
    rows: tuple[Rewarded, ...]
    known: Known | None = None  # from `reference_pass`; without it the update runs that pass itself

    @property
    def group(self) -> Group:
        """The rows as they are packed."""
        return Group(self.prompt, tuple(one.row.token_ids for one in self.rows))


@dataclass(frozen=True)
class Batch:
    """A pack of the step with what does not change over its inner updates."""

    pack: Pack
    rows: Sequence[Rewarded]  # those of the pack
    features: Tensor | None  # of its images, where the tower is frozen
    reference_states: Tensor | None  # [N, hidden], only where KL is over the whole vocabulary
    reference: Tensor  # [N]: log p under the SFT student

    def per_token(self, values: Sequence[float]) -> Tensor:
        """Values of rows as values [N] of their tokens."""
        return torch.tensor(values, device=self.pack.response.device)[self.pack.response]

    @property
    def student_rows(self) -> Tensor:
        """Mask [N] of the tokens that the student wrote."""
        return self.written_by(STUDENT)

    def written_by(self, source: str) -> Tensor:
        """Mask [N] of the tokens that `source` wrote."""
        wrote = [row.row.source == source for row in self.rows]
        return torch.tensor(wrote, dtype=torch.bool, device=self.pack.response.device)[self.pack.response]

    def tokens_with(self, term: str) -> Tensor | None:
        """Mask [N] of the tokens of rows with this term of the loss; None where there are none."""
        chosen = [row.term == term for row in self.rows]
        return torch.tensor(chosen, device=self.pack.response.device)[self.pack.response] if any(chosen) else None


@dataclass
class Totals:
    """Sums over the step's tokens of what is logged."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, name: str, values: Tensor) -> None:
        """Adds the values."""
        self.sums[name] += float(values.sum())
        self.tokens[name] += len(values)

    def add_by_source(self, name: str, values: Tensor, batch: Batch) -> None:
        """Adds the values [N] under `name`/<source> for every source, and under `name`/TEACHERS for all teachers."""
        for source in dict.fromkeys(row.row.source for row in batch.rows):
            self.add(f"{name}/{source}", values[batch.written_by(source)])
        self.add(f"{name}/{TEACHERS}", values[~batch.student_rows])

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

    The groups are this rank's; loss, gradient and what is logged are those of all ranks' rows (`idle` fills up their
    passes). With a frozen vision tower its features are computed once and serve student and reference alike. Old
    log-probabilities are those of the first inner update itself, so that no pass is run for them whatever mu is; at mu
    = 1 the ratio is exactly 1.
    """
    kept = [group for group in groups if group.rows]
    rows = int(ranks().total(sum(len(group.rows) for group in kept)))
    if not rows:
        return {"loss": float("nan"), "grad_norm": 0.0}
    groups = _with_known(student, reference, kept, block, objective, trainer, idle)
    batches = _batches(groups, block.tokens_per_pack, idle, student)
    normaliser = float(rows * (block.sampling.max_tokens if objective.loss_normaliser == "constant" else 1))
    old: list[Tensor] = []
    logged: dict[str, float] = {}
    for inner in range(block.inner_updates):
        totals, whole_loss = Totals(), 0.0
        for number, batch in enumerate(batches):
            before = old[number] if inner else None
            loss, log_probs = trainer.forward(
                partial(_loss, student, reference, batch, before, block, objective, normaliser, totals)
            )
            trainer.backward(loss, last=number == len(batches) - 1)
            whole_loss += float(loss.detach())
            if inner == 0:
                old.append(log_probs)
        norm = trainer.step(rate)
        if inner == 0:
            logged = {"loss": ranks().total(whole_loss), "grad_norm": norm, "learning_rate": rate, **totals.means()}
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
    """The batch's part of the loss, and its log-probabilities [N] without gradient; `before` are those of the first
    inner update.

    Without `before` this is the first one: they are the log-probabilities themselves, so that the ratio is exactly 1.
    """
    temperature = _temperature(block)
    states = predicting_states(student, batch.pack, batch.features)
    if before is None:
        log_probs, entropy = token_entropies(states, student.head.weight, batch.pack.targets, temperature)
        totals.add_by_source("entropy", entropy, batch)
        totals.add_by_source("kl", k3(log_probs.detach(), batch.reference), batch)
    else:
        log_probs = token_log_probs(states, student.head.weight, batch.pack.targets, temperature)
    old = log_probs.detach() if before is None else before
    whole = "full" in (objective.kl, objective.kl_on_teacher_rows)
    full = _full_kl(student, reference, states, batch, temperature) if whole else None
    loss, seen = policy_loss(log_probs, old, _policy(batch, old, block, objective, normaliser, full))
    for name, values in seen.items():
        totals.add(name, values)
        totals.add_by_source(name, values, batch)
    return loss, log_probs.detach()


@torch.no_grad()
def reference_pass(
    student: Network,
    reference: Network,
    groups: Sequence[Group],
    block: Ril,
    objective: Objective = PAPER,
    trainer: Trainer | None = None,
    idle: Idle | None = None,
) -> list[Known]:
    """What is known of each group before its rewards are: image features, and log p of every row under the SFT student.

    With a trained tower the reference sees through its own, untrained one, and there are no features to share. The
    groups are this rank's; the tower of a student that `trainer` shards runs equally often on all ranks.
    """
    whole = "full" in (objective.kl, objective.kl_on_teacher_rows)
    known: list[Known] = []
    sharded = trainer if trainer and trainer.sharded and block.freeze_vision else None
    made = (
        even_packs(groups, block.tokens_per_pack, idle, tower=True) if sharded else packs(groups, block.tokens_per_pack)
    )
    for pack in (one.to(student.device) for one in made):
        compute = partial(shared_features, student, pack)
        features = (sharded.forward(compute) if sharded else compute()) if block.freeze_vision else None
        if not pack.groups:  # an idle pass of the student's tower
            continue
        states = predicting_states(reference, pack, features)
        log_probs = token_log_probs(states, reference.head.weight, pack.targets, _temperature(block))
        own = [groups[number] for number in pack.groups]
        lengths = [len(ids) for group in own for ids in group.responses]
        by_row = iter(zip(torch.split(log_probs, lengths), torch.split(states, lengths), strict=True))
        images = [int((group.prompt.ids == student.image_token_id).sum()) for group in own]
        seen = [None] * len(own) if features is None else torch.split(features[: sum(images)], images)
        for group, its_features in zip(own, seen, strict=True):
            found = {ids: next(by_row) for ids in group.responses}
            log_probs_of = {ids: values for ids, (values, _) in found.items()}
            known.append(
                Known(its_features, log_probs_of, {ids: rows for ids, (_, rows) in found.items()} if whole else {})
            )
    return known


def _with_known(
    student: Network,
    reference: Network,
    groups: Sequence[Rewards],
    block: Ril,
    objective: Objective,
    trainer: Trainer,
    idle: Idle | None,
) -> list[Rewards]:
    if not ranks().most(int(any(group.known is None for group in groups)))[0]:  # all ranks run the pass, or none
        return list(groups)
    known = reference_pass(student, reference, [group.group for group in groups], block, objective, trainer, idle)
    return [replace(group, known=its) for group, its in zip(groups, known, strict=True)]


def _batches(groups: Sequence[Rewards], tokens_per_pack: int, idle: Idle | None, student: Network) -> list[Batch]:
    """The packs of the step; what is known of their rows is put together in their order, nothing where a pack is
    idle.
    """
    found = []
    device = student.device
    made = even_packs([group.group for group in groups], tokens_per_pack, idle, student.trains_vision)
    for pack in (one.to(device) for one in made):
        own = [groups[number] for number in pack.groups]
        if not own:
            found.append(
                Batch(
                    pack,
                    (),
                    None,
                    torch.zeros(0, student.head.in_features, device=device),
                    torch.zeros(0, device=device),
                )
            )
            continue
        known = [group.known for group in own if group.known is not None]
        rows = [(its, one.row.token_ids) for its, group in zip(known, own, strict=True) for one in group.rows]
        features = [its.features for its in known if its.features is not None and len(its.features)]
        found.append(
            Batch(
                pack,
                [one for group in own for one in group.rows],
                torch.cat(features) if features else None,
                torch.cat([its.states[ids] for its, ids in rows]) if known[0].states else None,
                torch.cat([its.reference[ids] for its, ids in rows]),
            )
        )
    return found


def _full_kl(student: Network, reference: Network, states: Tensor, batch: Batch, temperature: float) -> Tensor | None:
    if batch.reference_states is None:
        return None
    return token_full_kl(states, student.head.weight, batch.reference_states, reference.head.weight, temperature)


def _policy(
    batch: Batch, old: Tensor, block: Ril, objective: Objective, normaliser: float, full: Tensor | None
) -> Policy:
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
                f"ril.rollout_correction is {objective.rollout_correction!r}, but the engine gave no log-probs; "
                "set it to none"
            )
        sampled += row.row.sampled_log_probs or [0.0] * len(row.row.token_ids)
    engine = torch.tensor(sampled, dtype=old.dtype, device=old.device)
    kind, cap = objective.rollout_correction, objective.rollout_cap
    return rollout_weights(old, engine, batch.student_rows, batch.pack.response, kind, cap)


def shared_features(network: Network, pack: Pack) -> Tensor | None:
    """Image features of a pack without gradient; None for a pack without images."""
    if pack.pixels is None:
        return None
    with torch.no_grad():
        return network.features(pack.pixels)
