"""verl's own functions: compute_policy_loss, agg_loss, kl_penalty, compute_grpo_outcome_advantage,
compute_policy_loss_gspo.

Dual clip is switched off (clip_ratio_c 1e9). Left to itself agg_loss leaves fully masked rows out of the mean; where a
function can't be given the batch size its result is scaled by (rows with tokens) / rows.
"""

import numpy as np
import torch
from verl.trainer.ppo.core_algos import (
    agg_loss,
    compute_grpo_outcome_advantage,
    compute_policy_loss,
    compute_policy_loss_gspo,
    kl_penalty,
)
from verl.workers.config import FSDPActorConfig
from write import cases, leave

MODE = "seq-mean-token-sum-norm"


def tensors(b):
    return {name: torch.tensor(value) for name, value in b.items()}


def divided(matrix, mask):
    return agg_loss(matrix, mask, MODE, global_batch_size=cases.ROWS, loss_scale_factor=cases.WIDTH)


def loss_of(b, low, high, beta, level):
    t = tensors(b)
    log_probs = t["log_probs"].requires_grad_()
    advantages = t["advantages"][:, None].expand_as(log_probs)
    if level == "gspo":
        config = FSDPActorConfig(
            strategy="fsdp",
            rollout_n=8,
            ppo_mini_batch_size=8,
            ppo_micro_batch_size_per_gpu=8,
            clip_ratio_low=low,
            clip_ratio_high=high,
        )
        config.global_batch_info.update(global_batch_size=cases.ROWS, loss_scale_factor=cases.WIDTH)
        loss, _ = compute_policy_loss_gspo(t["old"], log_probs, advantages, t["mask"], MODE, config)
    elif level == "sequence":  # a row as one token that has the row's log-probability
        row, before = (log_probs * t["mask"]).sum(1, keepdim=True), (t["old"] * t["mask"]).sum(1, keepdim=True)
        some = (t["mask"].sum(1, keepdim=True) > 0).double()
        loss = compute_policy_loss(before, row, advantages[:, :1], some, 0.2, low, high, 1e9, MODE)[0]
        loss = loss * some.sum() / cases.ROWS / cases.WIDTH
    else:
        rows = (t["mask"].sum(1) > 0).sum()
        loss = (
            compute_policy_loss(t["old"], log_probs, advantages, t["mask"], 0.2, low, high, 1e9, MODE)[0]
            * rows
            / cases.ROWS
        )
    if beta:
        loss = loss + beta * divided(kl_penalty(log_probs, t["reference"], "k3"), t["mask"])
    (slope,) = torch.autograd.grad(loss, log_probs)
    return loss.detach().numpy(), slope.numpy()


def main():
    stored = cases.read("cases")
    found = {}
    for seed in cases.SEEDS:
        b = cases.batch(stored, seed)
        for clip, (low, high) in cases.CLIPS.items():
            for beta in (0.0, cases.BETA):
                for level in ("token", "gspo", "sequence"):
                    loss, slope = loss_of(b, low, high, beta, level)
                    found |= {
                        f"c1/{seed}/{level}/{clip}/{beta}/loss": loss,
                        f"c1/{seed}/{level}/{clip}/{beta}/slope": slope,
                    }
        t = tensors(b)
        kl = kl_penalty(t["log_probs"], t["reference"], "k3")
        for rank, part in enumerate((slice(0, 4), slice(4, 8))):  # two ranks, whose gradients are averaged
            share = agg_loss(
                kl[part], t["mask"][part], MODE, 2, global_batch_size=cases.ROWS, loss_scale_factor=cases.WIDTH
            )
            found[f"c5/{seed}/rank{rank}"] = share.numpy()
        found[f"c5/{seed}/whole"] = divided(kl, t["mask"]).numpy()
    rewards = torch.tensor(stored["groups/rewards"])[:, None]
    for scaled in (False, True):
        given = compute_grpo_outcome_advantage(
            rewards, torch.ones_like(rewards), stored["groups/index"].astype(int), norm_adv_by_std_in_grpo=scaled
        )
        found[f"c2/{scaled}"] = given[0][:, 0].numpy()
    keep = np.arange(24) % 5 != 0
    left = compute_grpo_outcome_advantage(
        rewards[keep],
        torch.ones_like(rewards[keep]),
        stored["groups/index"].astype(int)[keep],
        norm_adv_by_std_in_grpo=False,
    )
    found["c2/failed"] = left[0][:, 0].numpy()
    for kind in ("k1", "k2", "k3"):
        policy = torch.zeros(len(stored["gaps"]), dtype=torch.float64, requires_grad=True)
        value = kl_penalty(policy, torch.tensor(stored["gaps"]), kind)
        (slope,) = torch.autograd.grad(value.sum(), policy)
        found |= {f"c3/{kind}/value": value.detach().numpy(), f"c3/{kind}/slope": slope.numpy()}
    leave("verl", found, ("verl", "torch", "numpy"))


main()
