"""Measures the memory of the real `Trainer` and compares it with the estimate of flows/estimate.

    python -m tests.performance.memory_coefficients [--only CASE] [--hidden 1024] [--layers 6] [--tokens 2048]

A Qwen2.5-VL with random bf16 weights makes two steps of two packs. Each case runs in processes of its own; what is
compared is the resident memory of the first rank beyond that after a tiny trainer has loaded all libraries: at rest
after a step, its peak in the passes of the second step, and in the update of that step. Freed memory goes back to the
system (MALLOC_MMAP_THRESHOLD_). On a CPU memory that is allocated and not used takes no page, so DeepSpeed's buckets
count as far as there are weights to fill them. Exit code 1 if a figure is more than 10 % off.
"""

import argparse
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ALLOWED = 0.10
LORA = {"rank": 64, "alpha": 64.0}
PHASES = ("at rest", "passes", "update")
Figures = dict[str, float]


@dataclass(frozen=True)
class Case:
    """One set of settings."""

    name: str
    ranks: int
    runtime: Mapping[str, Any]
    lora: bool = False


SMALL_BUCKETS = {"zero_optimization": {"reduce_bucket_size": 10_000_000}}
CASES = (
    Case("ZeRO 2", 1, {"zero_stage": 2}),
    Case("ZeRO 2, checkpointing", 1, {"zero_stage": 2, "gradient_checkpointing": True}),
    Case("ZeRO 2, LoRA", 1, {"zero_stage": 2}, lora=True),
    Case("ZeRO 2, LoRA, checkpointing", 1, {"zero_stage": 2, "gradient_checkpointing": True}, lora=True),
    Case("ZeRO 2, swapped", 1, {"zero_stage": 2, "gradient_checkpointing": True, "optimizer_states": "swapped"}),
    Case("ZeRO 2, 2 ranks", 2, {"zero_stage": 2, "gradient_checkpointing": True}),
    Case("ZeRO 2, 2 ranks, small buckets", 2, {"zero_stage": 2, "deepspeed": SMALL_BUCKETS}),
    Case("ZeRO 3, 2 ranks", 2, {"zero_stage": 3, "gradient_checkpointing": True}),
    Case("ZeRO 3, 4 ranks", 4, {"zero_stage": 3, "gradient_checkpointing": True}),
)


def read_memory(field: str) -> int:
    """Bytes of VmRSS or VmHWM of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def forget_peak() -> None:
    """Starts VmHWM again at the present memory."""
    Path("/proc/self/clear_refs").write_text("5")


def make_steps(case: Case, shape: Any, tokens: int) -> Iterator[str]:
    """Makes two steps of two packs with the real `Trainer`; yields what is about to come: passes, update, at rest."""
    import torch

    from stages.config.lora import Lora
    from stages.config.runtime import Runtime
    from stages.config.schedule import Schedule
    from stages.groups.log_probs import response_log_probs
    from stages.groups.pack import Group, make_pack
    from stages.training.trainer import Trainer
    from stages.vlm.reader import Prompt
    from tests.gpu.shapes import model_of, network_of

    runtime = Runtime.model_validate({**case.runtime, "group_attention": "merged"})
    network = network_of(model_of(shape, torch.bfloat16))
    if case.lora:
        network = network.add_adapter("student", Lora.model_validate(LORA), 0)
    trainer = Trainer(network.trained, Schedule(steps=2, learning_rate=1e-4), runtime)
    places = torch.arange(tokens // 2)
    answers = tuple(tuple(range(8, 8 + tokens // 16)) for _ in range(8))
    group = Group(Prompt(places % 100 + 8, places.expand(3, -1).clone(), None), answers)
    pack = make_pack([group], range(1))
    for _ in range(2):
        yield "passes"
        for last in (False, True):
            loss = trainer.forward(lambda: -response_log_probs(network, pack).sum() / 1000)
            trainer.backward(loss, last)
            del loss
        yield "update"
        trainer.step(1e-4)
        gc.collect()
        yield "at rest"


def measure(case: Case, shape: Any, tokens: int, path: str) -> None:
    """Trains on this rank and writes what the first one measured to `path`, in bytes."""
    import torch

    from stages.training.ranks import get_ranks

    torch.manual_seed(0)
    for _ in make_steps(case, replace(shape, hidden=128, heads=2, key_heads=1, feed_forward=256, layers=1), 64):
        pass  # loads all libraries
    gc.collect()
    before, now = read_memory("VmRSS"), "load"
    found: Figures = {}
    for coming in make_steps(case, shape, tokens):
        found[now] = read_memory("VmHWM") - before
        if coming == "at rest":
            found[coming] = read_memory("VmRSS") - before
        else:
            forget_peak()
        now = coming
    if get_ranks().first:
        Path(path).write_text(json.dumps({key: found[key] for key in PHASES}))


def predict(case: Case, shape: Any, tokens: int, touched: bool = True) -> Figures:
    """The same figures from the estimate, in bytes; `touched`: buckets count as far as there are weights."""
    from flows.estimate.passes import BF16, measure_head, measure_text
    from flows.estimate.process import list_states
    from flows.estimate.shapes import ModelShape, TextShape, TowerShape
    from flows.estimate.trained import TrainedModel, find_sharding
    from stages.config.lora import ALL_TARGETS
    from stages.config.runtime import Runtime

    runtime = Runtime.model_validate({**case.runtime, "processes": case.ranks})
    sizes = (shape.hidden, shape.layers, shape.heads, shape.key_heads, shape.feed_forward, shape.vocabulary, shape.tied)
    vision = shape.vision
    tower = TowerShape(vision["hidden_size"], vision["depth"], vision["intermediate_size"], gated=True)
    model, rank = ModelShape(TextShape(*sizes), tower), int(LORA["rank"]) if case.lora else 0
    trained = model.text.count_adapter(rank, ALL_TARGETS) if rank else model.weights - model.tower_weights
    frozen = 0 if rank else model.tower_weights
    layers = measure_text(model.text, tokens, runtime.gradient_checkpointing, rank)
    head = measure_head(model.text, tokens // 2, trained=not rank)
    kept = layers.kept + max(layers.working, head)
    if touched:
        states = list_states(runtime, "warm_start", "bf16", trained, model.weights if rank else frozen, bool(rank))
        rest = sum(states.resting.values())
        grown = states.gradients - states.resting["gradients"] + max(kept, states.buffers)
        return {"at rest": rest, "passes": rest + grown, "update": rest + states.update}
    one = TrainedModel(trained, frozen, find_sharding(runtime, "warm_start", bool(rank)))
    resting = one.weight_bytes + one.state_bytes + one.resting_gradient_bytes + one.resting_buffer_bytes
    resting += BF16 * model.weights if rank else 0
    passes = one.gradient_bytes + one.buffer_bytes + kept
    return {"at rest": resting, "passes": resting + passes, "update": resting + one.step_bytes}


def run_case(number: int, shape: Any, tokens: int, path: str) -> None:
    """Runs the ranks of one case; called in a process of its own."""
    from tests.stages.training.spawned import run_ranks

    with tempfile.TemporaryDirectory() as folder:
        work = functools.partial(measure, CASES[number], shape, tokens, path)
        run_ranks(work, CASES[number].ranks, Path(folder), (), 600.0)


def main() -> None:
    """Prints a row for each case: measured and predicted MB, and the largest difference."""
    from tests.gpu.shapes import Shape

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="name of one case")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--case", nargs=2, metavar=("NUMBER", "PATH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2}
    heads = given.hidden // 64
    sizes = (given.hidden, given.layers, heads, heads // 4, 4 * given.hidden, 4096)
    shape = Shape("measured", *sizes, tied=True, vision=vision)
    if given.case:
        run_case(int(given.case[0]), shape, given.tokens, given.case[1])
        return
    print("| settings | at rest, MB | passes | update | off by |\n|---|---|---|---|---|", flush=True)
    worst = 0.0
    for number, case in enumerate(CASES):
        if given.only not in ("", case.name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/found.json"
            options = [f"--{key}={getattr(given, key)}" for key in ("hidden", "layers", "tokens")]
            command = [sys.executable, "-m", "tests.performance.memory_coefficients", *options, "--case", str(number)]
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
            subprocess.run([*command, path], env=environment, check=True, stderr=subprocess.DEVNULL)
            found = json.loads(Path(path).read_text())
        expected = predict(case, shape, given.tokens)
        off = max(abs(expected[key] / found[key] - 1) for key in found)
        worst = max(worst, off)
        cells = " | ".join(f"{found[key] / 1e6:,.0f}, {expected[key] / 1e6:,.0f}" for key in found)
        print(f"| {case.name} | {cells} | {100 * off:.0f} % |", flush=True)
    sys.exit(int(worst > ALLOWED))


if __name__ == "__main__":
    main()
