"""Our functions against TRL, verl, OpenRLHF and the formulas in numpy, from the golden files of these (C1-C3, C5, C6,
C9, C11).

Loss and gradient in fp64 to 1e-10; where an oracle computes in fp32 the bound is its rounding. `regenerate.py` makes
the files.
"""

import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from stages.adversary.discriminator_model import bradley_terry_loss
from stages.groups.log_probs import token_entropies, token_log_probs
from stages.groups.response import STUDENT, Response
from stages.policy.loss import LossInputs, count_tokens, k1, k2, k3, policy_loss, rollout_weights
from stages.policy.rewards import group_advantages, grpo_advantages, score_group

EXACT = 1e-10
FP32 = 2e-5
Golden = dict[str, dict[str, Any]]


def agree(golden: Golden, key: str, ours: Any, wanted: tuple[str, ...], bound: float = EXACT) -> None:
    """Each of the oracles in `wanted` has an answer under `key`, and it is ours."""
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    for oracle in wanted:
        difference = np.abs(ours - golden[oracle][key]).max()
        assert difference <= bound, f"{oracle} {key}: {difference:.2e}"


def test_every_oracle_left_answers_and_its_version(cases: ModuleType, golden: Golden) -> None:
    for oracle in ("formula", "trl", "verl", "openrlhf"):
        said = json.loads((cases.GOLDEN / f"{oracle}.json").read_text())
        assert said["values"] == len(golden[oracle]) > 10
        assert {oracle if oracle != "formula" else "numpy"} <= set(said["versions"])
    drawn = cases.drawn()
    assert drawn.keys() == golden["cases"].keys()
    assert all(np.array_equal(drawn[key], golden["cases"][key]) for key in drawn)


def flat(cases: ModuleType, golden: Golden, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, np.ndarray]:
    """One batch as we take it: the tokens in the mask, one after the other, with the row of each."""
    batch = cases.batch(golden["cases"], seed)
    mask = batch.pop("mask").astype(bool)
    response = torch.tensor(np.nonzero(mask)[0])
    tokens = {name: torch.tensor(value[mask]) for name, value in batch.items() if value.ndim == 2}
    tokens["advantages"] = torch.tensor(batch["advantages"])[response]
    return tokens, response, mask


def loss_and_slope(
    tokens: dict[str, torch.Tensor], mask: np.ndarray, policy: LossInputs
) -> tuple[torch.Tensor, np.ndarray]:
    log_probs = tokens["log_probs"].clone().requires_grad_()
    loss, _ = policy_loss(log_probs, tokens["old"], policy)
    (slope,) = torch.autograd.grad(loss, log_probs)
    full = np.zeros(mask.shape)
    full[mask] = slope.numpy()
    return loss, full


C1 = {
    "token": ("formula", "trl", "verl"),
    "gspo": ("formula", "trl", "verl"),
    "sequence": ("formula", "verl"),
}


@pytest.mark.parametrize("clip", ["paper", "higher"])
@pytest.mark.parametrize("beta", [0.0, 0.01])
@pytest.mark.parametrize("ratio", list(C1))
@pytest.mark.parametrize("seed", range(5))
def test_c1_loss_and_gradient(cases: ModuleType, golden: Golden, seed: int, ratio: Any, beta: float, clip: str) -> None:
    """Ratios far outside the clip range, ragged rows, one of length 1, one fully masked; wider upper clip; three
    ratios.
    """
    tokens, response, mask = flat(cases, golden, seed)
    low, high = cases.CLIPS[clip]
    rows = float(cases.ROWS * cases.WIDTH)
    policy = LossInputs(
        tokens["advantages"], tokens["reference"], low, high, beta, rows, ratio=ratio, response=response
    )
    loss, slope = loss_and_slope(tokens, mask, policy)
    oracles = (*C1[ratio], "openrlhf") if ratio == "token" and not beta else C1[ratio]
    agree(golden, f"c1/{seed}/{ratio}/{clip}/{beta}/loss", loss, oracles)
    agree(golden, f"c1/{seed}/{ratio}/{clip}/{beta}/slope", slope, oracles)


@pytest.mark.parametrize("seed", range(5))
def test_c1_mean_over_each_row(cases: ModuleType, golden: Golden, seed: int) -> None:
    """`loss_normaliser: row`, which objective `grpo` has."""
    tokens, response, mask = flat(cases, golden, seed)
    weights = (1.0 / count_tokens(response).double())[response]
    policy = LossInputs(
        tokens["advantages"], tokens["reference"], 0.2, 0.2, 0.01, float(cases.ROWS), response=response, weights=weights
    )
    loss, slope = loss_and_slope(tokens, mask, policy)
    agree(golden, f"c1/{seed}/grpo/loss", loss, ("formula", "trl"))
    agree(golden, f"c1/{seed}/grpo/slope", slope, ("formula", "trl"))


@pytest.mark.parametrize("scaled", [False, True])
def test_c2_advantages_of_interleaved_groups(golden: Golden, scaled: bool) -> None:
    rewards, index = golden["cases"]["groups/rewards"], golden["cases"]["groups/index"]
    ours = np.empty_like(rewards)
    for group in np.unique(index):
        ours[index == group] = (grpo_advantages if scaled else group_advantages)(rewards[index == group].tolist())
    agree(golden, f"c2/{scaled}", ours, ("formula", "verl"), EXACT if not scaled else 1e-9)


def test_c2_rows_with_a_failed_verdict_are_out_of_the_mean(golden: Golden) -> None:
    """The whole way through `score_group`: similarity 1 for all (z < 0), the verdict is the rest of the reward."""
    rewards, index = golden["cases"]["groups/rewards"], golden["cases"]["groups/index"]
    kept = golden["formula"]["c2/kept"].astype(bool)
    found = np.full(len(rewards), np.nan)
    for group in np.unique(index):
        at = np.nonzero(index == group)[0]
        verdicts = [None if not kept[i] else int(rewards[i] > 0) for i in at]
        rows = [
            Response(STUDENT if n < 4 else "t", str(i), (1,), "stop", v)
            for n, (i, v) in enumerate(zip(at, verdicts, strict=True))
        ]
        # rewards 0, 1, 2 as verdict and similarity: 0 = neither, 1 = verdict alone, 2 = both
        logits = [-1.0 if rewards[i] == 2 else 1.0 for i in at]
        for one in score_group(rows, logits):
            found[int(one.response.text)] = one.advantage
    assert np.array_equal(np.isnan(found), ~kept)
    agree(golden, "c2/failed", found[kept], ("formula", "verl"))


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_c3_kl_estimates(golden: Golden, kind: str) -> None:
    """Value and gradient for gaps from 1e-6 to 30; verl and OpenRLHF cut at 10 and 20, so they are asked inside of
    that.
    """
    gaps = golden["cases"]["gaps"]
    policy = torch.zeros(len(gaps), dtype=torch.float64, requires_grad=True)
    value = {"k1": k1, "k2": k2, "k3": k3}[kind](policy, torch.tensor(gaps))
    (slope,) = torch.autograd.grad(value.sum(), policy)
    wanted = golden["formula"]
    assert np.allclose(value.detach().numpy(), wanted[f"c3/{kind}/value"], rtol=1e-12, atol=EXACT)
    assert np.allclose(slope.numpy(), wanted[f"c3/{kind}/slope"], rtol=1e-12, atol=EXACT)
    inside = np.abs(wanted[f"c3/{kind}/value"]) < 10 if kind == "k3" else np.abs(gaps) < 4
    assert inside.sum() >= 16
    for oracle, bound in (("verl", EXACT), ("openrlhf", 1e-6)):
        assert np.abs(value.detach().numpy() - golden[oracle][f"c3/{kind}/value"])[inside].max() <= bound, oracle
    assert np.abs(slope.numpy() - golden["verl"][f"c3/{kind}/slope"])[inside].max() <= EXACT


def test_c3_others_lose_the_gradient_where_ours_keeps_it(golden: Golden) -> None:
    """The finding of peers.md 5A': beyond 2.6 nats verl's k3 has no gradient at all."""
    far = golden["cases"]["gaps"] > 2.7
    assert far.sum() == 4
    assert not golden["verl"]["c3/k3/slope"][far].any()
    assert (golden["formula"]["c3/k3/slope"][far] < -100).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("packs", [1, 3, 8])
def test_c5_micro_batches_add_up(cases: ModuleType, golden: Golden, seed: int, packs: int) -> None:
    """One pack, three, or one a row: with the constant of the whole step the losses and gradients add up to the
    same.
    """
    tokens, response, mask = flat(cases, golden, seed)
    total, slope = 0.0, torch.zeros_like(tokens["log_probs"])
    for part in np.array_split(np.arange(cases.ROWS), packs):
        own = torch.isin(response, torch.tensor(part))
        if not own.any():
            continue
        log_probs = tokens["log_probs"][own].clone().requires_grad_()
        rows = float(cases.ROWS * cases.WIDTH)
        policy = LossInputs(tokens["advantages"][own], tokens["reference"][own], 0.2, 0.2, cases.BETA, rows)
        loss, _ = policy_loss(log_probs, tokens["old"][own], policy)
        slope[own] = torch.autograd.grad(loss, log_probs)[0]
        total += float(loss.detach())
    full = np.zeros(mask.shape)
    full[mask] = slope.numpy()
    agree(golden, f"c1/{seed}/token/paper/0.01/loss", total, ("formula", "trl", "verl"))
    agree(golden, f"c1/{seed}/token/paper/0.01/slope", full, ("formula", "trl", "verl"))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_c6_head(golden: Golden, monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """Tiles of 7 rows against whole logits: log-prob, entropy, both gradients; TRL's kernel computes in fp32."""
    monkeypatch.setattr("stages.groups.head.ROWS_PER_TILE", 7)
    stored = golden["cases"]
    hidden = torch.tensor(stored["head/hidden"], requires_grad=True)
    weight = torch.tensor(stored["head/weight"], requires_grad=True)
    log_probs, entropy = token_entropies(hidden, weight, torch.tensor(stored["head/targets"]).long(), temperature)
    by_hidden, by_weight = torch.autograd.grad(
        (log_probs * torch.tensor(stored["head/slopes"])).sum(), (hidden, weight)
    )
    ours = {"log_probs": log_probs, "entropy": entropy, "hidden": by_hidden, "weight": by_weight}
    for name, value in ours.items():
        agree(golden, f"c6/{temperature}/{name}", value, ("formula",))
        agree(golden, f"c6/{temperature}/{name}", value, ("trl",), FP32)


def test_c6_half_precision_is_summed_and_kept_in_fp32(golden: Golden) -> None:
    """bf16 inputs: as exact as fp32 makes it, where a bf16 result would be off by 1e-2."""
    stored = golden["cases"]
    hidden = torch.tensor(stored["head/hidden"]).bfloat16().requires_grad_()
    weight = torch.tensor(stored["head/weight"]).bfloat16().requires_grad_()
    targets = torch.tensor(stored["head/targets"]).long()
    ours = token_log_probs(hidden, weight, targets)
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    exact = token_log_probs(wide[0], wide[1], targets)
    assert ours.dtype == torch.float32
    assert float((ours - exact).abs().max()) < 1e-5
    for got, wanted in zip(
        torch.autograd.grad(ours.sum(), (hidden, weight)), torch.autograd.grad(exact.sum(), wide), strict=True
    ):
        assert float((got.double() - wanted).abs().max() / wanted.abs().max()) < 1e-2


C9 = {
    "truncate_token": ("formula", "trl", "openrlhf"),
    "mask_token": ("formula", "trl", "openrlhf"),
    "truncate_sequence": ("formula", "trl"),
    "mask_sequence": ("formula", "trl"),
}


@pytest.mark.parametrize("kind", list(C9))
@pytest.mark.parametrize("seed", range(5))
def test_c9_corrections_for_the_engine(cases: ModuleType, golden: Golden, seed: int, kind: Any) -> None:
    """Truncated or masked, by token or by sequence; the teacher's rows 4 to 7 have weight 1 (trap T15)."""
    tokens, response, mask = flat(cases, golden, seed)
    weights = rollout_weights(tokens["old"], tokens["engine"], response < 4, response, kind, cases.CAP)
    assert bool((weights[response >= 4] == 1).all())
    assert np.abs(weights.numpy() - golden["formula"][f"c9/{seed}/{kind}/weight"][mask]).max() <= EXACT
    rows = float(cases.ROWS * cases.WIDTH)
    policy = LossInputs(tokens["advantages"], tokens["reference"], 0.2, 0.2, 0.0, rows, gain_weights=weights)
    loss, slope = loss_and_slope(tokens, mask, policy)
    agree(golden, f"c9/{seed}/{kind}/loss", loss, C9[kind])
    agree(golden, f"c9/{seed}/{kind}/slope", slope, C9[kind])


def test_c11_bradley_terry(golden: Golden) -> None:
    """All 16 pairs of one question; texts of another question have no pair with them."""
    stored = golden["cases"]
    logits = torch.tensor(np.concatenate([stored["pairs/student"], stored["pairs/teacher"], [5.0]]), requires_grad=True)
    labels, questions = torch.tensor([1.0] * 4 + [0.0] * 5), torch.tensor([0] * 8 + [1])
    loss = bradley_terry_loss(logits, labels, questions, 16)
    (slope,) = torch.autograd.grad(loss, logits)
    agree(golden, "c11/loss", loss, ("formula", "openrlhf"))
    agree(golden, "c11/student", slope[:4], ("formula", "openrlhf"))
    agree(golden, "c11/teacher", slope[4:8], ("formula", "openrlhf"))
    assert float(slope[8]) == 0


@pytest.mark.parametrize("seed", range(5))
def test_c5_two_ranks_as_verl_divides_them(cases: ModuleType, golden: Golden, seed: int) -> None:
    """verl scales a rank's share by the number of ranks, whose gradients are averaged; ours, scaled so, is the same
    share.
    """
    tokens, response, _ = flat(cases, golden, seed)
    nothing = torch.zeros_like(tokens["advantages"])
    for rank, own in enumerate((response < 4, response >= 4)):
        rows = float(cases.ROWS * cases.WIDTH)
        policy = LossInputs(nothing[own], tokens["reference"][own], 0.2, 0.2, 1.0, rows)
        share, _ = policy_loss(tokens["log_probs"][own], tokens["log_probs"][own], policy)
        agree(golden, f"c5/{seed}/rank{rank}", 2 * share, ("verl",))
    both = golden["verl"][f"c5/{seed}/rank0"] + golden["verl"][f"c5/{seed}/rank1"]
    assert abs(both / 2 - golden["verl"][f"c5/{seed}/whole"]) < EXACT
