"""OpenRLHF's own losses: PolicyLoss with two of its corrections for the engine, PairWiseLoss, compute_approx_kl (in
fp32).

PolicyLoss means over tokens, or over each row's tokens: it is given rows x constant as the number of tokens. The
package's `models/__init__.py` imports flash_attn, which needs a GPU to be built; an empty package in its place leads to
the same files.
"""

import sys
import types
from pathlib import Path

import openrlhf
import torch
from write import cases, leave

package = types.ModuleType("openrlhf.models")
package.__path__ = [str(Path(openrlhf.__file__).parent / "models")]
sys.modules["openrlhf.models"] = package

from openrlhf.models.loss import PairWiseLoss, PolicyLoss  # noqa: E402
from openrlhf.models.utils import compute_approx_kl  # noqa: E402


def loss_of(b, low=0.2, high=0.2, kind=None):
    t = {name: torch.tensor(value) for name, value in b.items()}
    log_probs = t["log_probs"].requires_grad_()
    advantages = t["advantages"][:, None].expand_as(log_probs)
    engine = t["engine"].clone()
    engine[4:] = t["old"][4:]  # a teacher's rows: no gap to correct
    loss = PolicyLoss(
        clip_eps_low=low,
        clip_eps_high=high,
        enable_vllm_is_correction=kind is not None,
        vllm_is_truncated_threshold=[0.0, cases.CAP],
        vllm_is_correction_type=kind or "tis",
    )
    tokens = float(cases.ROWS * cases.WIDTH)
    value = loss(log_probs, t["old"], advantages, t["mask"], engine, batch_num_tokens=tokens)[0]
    (slope,) = torch.autograd.grad(value, log_probs)
    return value.detach().numpy(), slope.numpy()


def main():
    stored = cases.read("cases")
    found = {}
    for seed in cases.SEEDS:
        b = cases.batch(stored, seed)
        for clip, (low, high) in cases.CLIPS.items():
            loss, slope = loss_of(b, low, high)
            found |= {f"c1/{seed}/token/{clip}/0.0/loss": loss, f"c1/{seed}/token/{clip}/0.0/slope": slope}
        for ours, theirs in (("truncate_token", "tis"), ("mask_token", "icepop")):
            loss, slope = loss_of(b, kind=theirs)
            found |= {f"c9/{seed}/{ours}/loss": loss, f"c9/{seed}/{ours}/slope": slope}
    for kind in ("k1", "k2", "k3"):
        found[f"c3/{kind}/value"] = compute_approx_kl(
            torch.zeros(len(stored["gaps"])), torch.tensor(stored["gaps"]), kind
        ).numpy()
    student = torch.tensor(stored["pairs/student"], requires_grad=True)
    teacher = torch.tensor(stored["pairs/teacher"], requires_grad=True)
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    loss = PairWiseLoss()(
        student[every[:, 0]], teacher[every[:, 1]]
    )  # ours is high for the student: it is their "chosen"
    by_student, by_teacher = torch.autograd.grad(loss, (student, teacher))
    found |= {"c11/loss": loss.detach().numpy(), "c11/student": by_student.numpy(), "c11/teacher": by_teacher.numpy()}
    leave("openrlhf", found, ("openrlhf", "torch", "numpy"))


main()
