"""C5: two data-parallel ranks over gloo make the gradient of one, with ragged rows and another number of packs on
each.
"""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stages.policy.loss import LossInputs, policy_loss

ROWS, WIDTH = 6, 9


def step(rows: range, packs: int) -> torch.Tensor:
    """Gradient [WIDTH] by a shared parameter of the loss of `rows`, in so many packs; the constant is that of all
    rows.
    """
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, WIDTH + 1, (ROWS,), generator=draw)
    advantages = torch.randn(ROWS, generator=draw, dtype=torch.float64)
    base = -3 * torch.rand(ROWS, WIDTH, generator=draw, dtype=torch.float64)
    reference = base + 0.5 * torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64)
    shared = torch.zeros(WIDTH, dtype=torch.float64, requires_grad=True)
    for part in torch.tensor(list(rows)).chunk(packs):
        log_probs = torch.cat(
            [base[row, : lengths[row]] + torch.sin(shared[: lengths[row]]) * (row + 1) for row in part]
        )
        response = torch.repeat_interleave(torch.arange(len(part)), lengths[part])
        policy = LossInputs(
            advantages[part][response],
            torch.cat([reference[row, : lengths[row]] for row in part]),
            0.2,
            0.2,
            0.01,
            float(ROWS * WIDTH),
        )
        policy_loss(log_probs, log_probs.detach() + 0.1, policy)[0].backward()
    assert shared.grad is not None
    return shared.grad


def rank_main(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    gradient = 2 * step(range(4) if rank == 0 else range(4, ROWS), packs=3 - 2 * rank)
    dist.all_reduce(gradient)
    gradient /= 2  # what a data-parallel trainer does: the mean over ranks
    if rank == 0:
        torch.save(gradient, f"{folder}/gradient.pt")
    dist.destroy_process_group()


def test_c5_two_ranks_make_the_gradient_of_one(tmp_path: Path) -> None:
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)
    assert torch.allclose(torch.load(tmp_path / "gradient.pt"), step(range(ROWS), 1), atol=1e-12)
