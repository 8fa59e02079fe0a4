"""TRL's own code: GRPOTrainer._compute_loss as an unbound function on a stand-in for the trainer, and its chunked
log-probs.

The stand-in's method for log-probabilities returns our tensor; everything else is TRL's. `use_bias_correction_kl` is
off, since it multiplies KL by the ratio; TRL counts fully masked rows in the mean, as we do.
"""

from collections import defaultdict
from types import SimpleNamespace

import torch
from trl import GRPOTrainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from write import cases, leave


def trainer(log_probs, low, high, beta, level, kind, corrected=False):
    class Metrics(defaultdict):
        pass

    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs.detach()), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=kind,
        epsilon_low=low,
        epsilon_high=high,
        use_vllm=corrected,
        vllm_importance_sampling_correction=corrected,
        max_completion_length=cases.WIDTH,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1),
        _metrics={"train": defaultdict(list)},
    )


def loss_of(b, low=0.2, high=0.2, beta=0.0, level="token", kind="dr_grpo", weights=None):
    log_probs = torch.tensor(b["log_probs"], requires_grad=True)
    ids = torch.zeros(cases.ROWS, cases.WIDTH, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": torch.tensor(b["mask"]),
        "advantages": torch.tensor(b["advantages"]),
        "old_per_token_logps": torch.tensor(b["old"]),
        "ref_per_token_logps": torch.tensor(b["reference"]),
    }
    if weights is not None:
        inputs["importance_sampling_ratio"] = torch.tensor(weights)
    stand_in = trainer(log_probs, low, high, beta, level, kind, weights is not None)
    loss = GRPOTrainer._compute_loss(stand_in, None, inputs)
    (slope,) = torch.autograd.grad(loss, log_probs)
    return loss.detach().numpy(), slope.numpy()


def main():
    stored, formula = cases.read("cases"), cases.read("formula")
    found = {}
    for seed in cases.SEEDS:
        b = cases.batch(stored, seed)
        for clip, (low, high) in cases.CLIPS.items():
            for beta in (0.0, cases.BETA):
                for ours, theirs in (("token", "token"), ("gspo", "sequence")):
                    loss, slope = loss_of(b, low, high, beta, theirs)
                    found |= {
                        f"c1/{seed}/{ours}/{clip}/{beta}/loss": loss,
                        f"c1/{seed}/{ours}/{clip}/{beta}/slope": slope,
                    }
        loss, slope = loss_of(b, beta=cases.BETA, kind="grpo")
        found |= {f"c1/{seed}/grpo/loss": loss, f"c1/{seed}/grpo/slope": slope}
        for mode in ("truncate_token", "mask_token", "truncate_sequence", "mask_sequence"):
            loss, slope = loss_of(b, weights=formula[f"c9/{seed}/{mode}/weight"])  # how TRL applies given weights
            found |= {f"c9/{seed}/{mode}/loss": loss, f"c9/{seed}/{mode}/slope": slope}
    for temperature in (0.7, 1.0, 1.3):
        hidden = torch.tensor(stored["head/hidden"], dtype=torch.float32, requires_grad=True)
        weight = torch.tensor(stored["head/weight"], dtype=torch.float32, requires_grad=True)
        targets = torch.tensor(stored["head/targets"]).long()
        out = ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, temperature, 128, None, 1.0, ("logprob", "entropy")
        )
        log_probs, entropy = out[0], out[1]
        slopes = torch.tensor(stored["head/slopes"], dtype=torch.float32)
        by_hidden, by_weight = torch.autograd.grad((log_probs * slopes).sum(), (hidden, weight))
        for name, value in (
            ("log_probs", log_probs),
            ("entropy", entropy),
            ("hidden", by_hidden),
            ("weight", by_weight),
        ):
            found[f"c6/{temperature}/{name}"] = value.detach().numpy()
    leave("trl", found, ("trl", "torch", "transformers", "numpy"))


main()
