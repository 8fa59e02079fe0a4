"""The log-prob head against full logits at a vocabulary of 152k: time and peak memory of forward and backward.

    OMP_NUM_THREADS=1 python tests/performance/log_prob_head.py [--rows 256] [--prompt 992] [--hidden 256] [--vocabulary
    151936]

Three ways on the same hidden states, each giving log p of the answer tokens and both gradients: ours; full logits of
the answer tokens and log-softmax; full logits of all tokens, prompts too, as a model's own forward makes them. CPU
seconds of the process, or seconds on a GPU; memory is what the way adds at its peak. A sum over values and gradients
must agree.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.groups.log_probs import token_log_probs

REPEATS = 3
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def full_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log p of the targets by log-softmax over all words."""
    return torch.log_softmax((hidden @ weight.T).float(), -1).gather(1, targets[:, None]).squeeze(1)


def compare(rows: int, hidden_size: int, vocabulary: int, prompt: int = 0) -> dict[str, Any]:
    """Measures the ways on the default device and prints them; with `prompt` > 0 also full logits of so many tokens
    more.

    Raises AssertionError when the ways do not give the same.
    """
    cuda = torch.get_default_device().type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    torch.manual_seed(0)
    hidden = torch.randn(prompt + rows, hidden_size, dtype=dtype).requires_grad_()
    weight = (torch.randn(vocabulary, hidden_size, dtype=dtype) / hidden_size**0.5).requires_grad_()
    targets = torch.randint(vocabulary, (rows,))
    slopes = torch.randn(rows)

    def answers(way: Way) -> Callable[[], Tensor]:
        return lambda: way(hidden[prompt:], weight, targets)

    def everything() -> Tensor:
        return full_logits(hidden, weight, torch.cat([targets.new_zeros(prompt), targets]))[prompt:]

    ways = {"ours": answers(token_log_probs), "full logits, answers": answers(full_logits)}
    if prompt:
        ways["full logits, all tokens"] = everything
    print(f"{rows} answer tokens, {prompt} others, width {hidden_size}, vocabulary {vocabulary}, {dtype}")
    found: dict[str, Any] = {}
    for name, way in ways.items():
        seconds, peak, check = _measured(way, slopes, hidden, weight)
        found[name] = {"seconds": seconds, "peak_mib": peak}
        expected = found.setdefault("check", check)
        assert abs(check - expected) <= (0.05 if cuda else 1e-3) * abs(expected), (
            f"{name} has other gradients: {check}, {expected}"
        )
        ratio, more = seconds / found["ours"]["seconds"], peak / max(found["ours"]["peak_mib"], 1.0)
        print(f"  {name:26} {seconds * 1e3:8.1f} ms = {ratio:.2f} x; +{peak:.0f} MiB = {more:.2f} x", flush=True)
    return found


def _measured(way: Callable[[], Tensor], slopes: Tensor, hidden: Tensor, weight: Tensor) -> tuple[float, float, float]:
    """Median seconds, most memory added in MiB, and a number that depends on all values and gradients."""
    cuda = hidden.is_cuda
    seconds, peaks, check = [], [], 0.0
    for _ in range(REPEATS):
        hidden.grad = weight.grad = None
        before = _reset(cuda)
        start = _clock(cuda)
        log_probs = way()
        (log_probs * slopes).sum().backward()
        seconds.append(_clock(cuda) - start)
        peaks.append(_peak(cuda) - before)
        assert hidden.grad is not None
        assert weight.grad is not None
        check = float(log_probs.detach().double().sum() + hidden.grad.double().norm() + weight.grad.double().norm())
    return statistics.median(seconds), max(peaks), check


def _clock(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _reset(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory counts from here
    return _status("VmRSS")


def _peak(cuda: bool) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if cuda else _status("VmHWM")


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Measures one size."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=256, help="answer tokens: 8 rows of 32")
    options.add_argument(
        "--prompt", type=int, default=992, help="prompt tokens that stand beside them: 8 repeated prompts of 124"
    )
    options.add_argument("--hidden", type=int, default=256)
    options.add_argument("--vocabulary", type=int, default=151936)
    given = options.parse_args()
    torch.set_num_threads(1)
    compare(given.rows, given.hidden, given.vocabulary, given.prompt)


if __name__ == "__main__":
    main()
