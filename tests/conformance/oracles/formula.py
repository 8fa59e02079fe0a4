"""The formulas in plain numpy, written from the papers, with derivatives by hand: no autograd, no code in common with
stages/.

Eq. 2 of arXiv 2510.19307 with Dr.GRPO's constant; GSPO 2507.18071; GRPO 2402.03300; k1, k2, k3 as in Schulman's note.
"""

import numpy as np
from write import cases, leave


def kl_values(policy, reference, kind):
    """Value and derivative by log p of the policy."""
    gap = reference - policy
    if kind == "k1":
        return -gap, np.ones_like(gap)
    if kind == "k2":
        return gap**2 / 2, -gap
    return np.exp(gap) - gap - 1, 1 - np.exp(gap)


def clipped(ratio, advantage, low, high):
    """min(r A, clip(r) A), and whether the side that is not clipped was taken."""
    plain, cut = ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage
    return np.minimum(plain, cut), plain <= cut


def eq2(b, low, high, beta, level="token", kind="k3", per_row=False, weights=None):
    """Loss and its gradient by log p, [rows, width]."""
    mask, lengths = b["mask"], np.maximum(b["mask"].sum(1), 1)
    advantage = b["advantages"][:, None]
    gap = (b["log_probs"] - b["old"]) * mask
    if level == "token":
        gain, active = clipped(np.exp(gap), advantage, low, high)
        slope = np.exp(gap) * advantage * active
    elif level == "sequence":  # one term a row
        ratio = np.exp(gap.sum(1, keepdims=True))
        gain, active = clipped(ratio, advantage, low, high)
        gain = gain / lengths[:, None]
        slope = np.broadcast_to(ratio * advantage * active, mask.shape)
    else:  # gspo: the geometric mean, counted once a token
        ratio = np.exp(gap.sum(1) / lengths)[:, None]
        gain, active = clipped(ratio, advantage, low, high)
        slope = np.broadcast_to(ratio * advantage * active, mask.shape)
    gain, slope = np.broadcast_to(gain, mask.shape), slope
    if weights is not None:
        gain, slope = gain * weights, slope * weights
    kl, kl_slope = kl_values(b["log_probs"], b["reference"], kind)
    divisor = np.full(len(mask), float(cases.WIDTH)) if not per_row else lengths
    share = mask / divisor[:, None] / cases.ROWS
    return ((beta * kl - gain) * share).sum(), (beta * kl_slope - slope) * share


def rollout(b, mode, level):
    """Weights for the gap between trainer (old) and engine; rows 4 to 7 are a teacher's."""
    gap = (b["old"] - b["engine"]) * b["mask"]
    weight = np.exp(gap if level == "token" else np.broadcast_to(gap.sum(1, keepdims=True), gap.shape))
    weight = np.minimum(weight, cases.CAP) if mode == "truncate" else np.where(weight > cases.CAP, 0.0, weight)
    weight[4:] = 1.0
    return weight


def advantages(rewards, index, scaled):
    """A row's reward less the mean of its group, over the group's deviation where `scaled`."""
    found = np.empty_like(rewards)
    for group in np.unique(index):
        at = index == group
        found[at] = rewards[at] - rewards[at].mean()
        if scaled:
            found[at] /= rewards[at].std(ddof=1) + 1e-6
    return found


def main():
    stored = cases.read("cases")
    found = {}
    for seed in cases.SEEDS:
        b = cases.batch(stored, seed)
        for clip, (low, high) in cases.CLIPS.items():
            for beta in (0.0, cases.BETA):
                for level in ("token", "gspo", "sequence"):
                    loss, slope = eq2(b, low, high, beta, level)
                    found |= {
                        f"c1/{seed}/{level}/{clip}/{beta}/loss": loss,
                        f"c1/{seed}/{level}/{clip}/{beta}/slope": slope,
                    }
        loss, slope = eq2(b, 0.2, 0.2, cases.BETA, per_row=True)
        found |= {f"c1/{seed}/grpo/loss": loss, f"c1/{seed}/grpo/slope": slope}
        for mode in ("truncate", "mask"):
            for level in ("token", "sequence"):
                weight = rollout(b, mode, level)
                loss, slope = eq2(b, 0.2, 0.2, 0.0, weights=weight)
                found |= {
                    f"c9/{seed}/{mode}_{level}/{name}": v
                    for name, v in (("weight", weight), ("loss", loss), ("slope", slope))
                }
    rewards, index = stored["groups/rewards"], stored["groups/index"]
    for scaled in (False, True):
        found[f"c2/{scaled}"] = advantages(rewards, index, scaled)
    keep = np.arange(24) % 5 != 0  # rows 0, 5, 10 ... have no verdict: their groups' means are over the others
    found["c2/kept"] = keep
    found["c2/failed"] = advantages(rewards[keep], index[keep], False)
    for kind in ("k1", "k2", "k3"):
        value, slope = kl_values(np.zeros_like(stored["gaps"]), stored["gaps"], kind)
        found |= {f"c3/{kind}/value": value, f"c3/{kind}/slope": slope}
    student, teacher = stored["pairs/student"], stored["pairs/teacher"]
    difference = student[:, None] - teacher[None]
    found["c11/loss"] = np.log1p(np.exp(-difference)).mean()
    found["c11/student"] = -(1 / (1 + np.exp(difference))).sum(1) / difference.size
    found["c11/teacher"] = (1 / (1 + np.exp(difference))).sum(0) / difference.size
    hidden, weight, slopes = stored["head/hidden"], stored["head/weight"], stored["head/slopes"]
    targets = stored["head/targets"].astype(int)
    for temperature in (0.7, 1.0, 1.3):
        logits = hidden @ weight.T / temperature
        top = logits.max(1, keepdims=True)
        logs = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        p = np.exp(logs)
        pull = (np.eye(len(weight))[targets] - p) * slopes[:, None] / temperature
        found |= {
            f"c6/{temperature}/log_probs": logs[np.arange(len(targets)), targets],
            f"c6/{temperature}/entropy": -(p * logs).sum(1),
            f"c6/{temperature}/hidden": pull @ weight,
            f"c6/{temperature}/weight": pull.T @ hidden,
        }
    leave("formula", found, ("numpy",))


main()
