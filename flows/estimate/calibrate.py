"""`ril plan --measure`: what this machine can do, from a Trainer and two engines that run for some seconds each.

    <store>/machines/<name of the machine>.json

Each part runs in a process of its own, because vLLM takes over a process that trains. Random weights compute as fast as
learned ones.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flows.estimate.amounts import Range
from flows.estimate.cards import name_machine
from flows.estimate.past import MACHINES, Calibration
from flows.estimate.shapes import TINY_VOCABULARY, ModelShape, read_shape
from flows.estimate.workload import count_head, count_layers
from stages.config.build import Build
from stages.job.failure import Failure
from stages.job.files import read_json, write_json

LIMIT_SECONDS = 600.0  # of one part
SMALL = Build(steps=0, learning_rate=1e-3, hidden_size=128, layers=3, heads=4)
LARGE = Build(steps=0, learning_rate=1e-3, hidden_size=768, layers=8, heads=12)  # 43 M weights
PACKS = (256, 1024)  # tokens of the timed steps: their difference is arithmetic, the rest is not
ANSWERS, ANSWER_TOKENS = (256, 16), 32  # of the small and of the large model
CONTEXT = 512
FAMILY = next(iter(TINY_VOCABULARY))  # of the measured models: any that sees images


def calibrate(store: Path, say: Callable[[str], None]) -> Calibration:
    """Measures this machine, keeps the figures in `store` and returns them. Raises Failure when a part fails."""
    began = time.monotonic()
    say("measuring a trainer of 43 M weights (1 of 3)")
    _run_part("imports")  # what a first start reads from the disk takes some 20 s, and is no start of later stages
    trained = _run_part("trainer")
    say(f"measuring an engine with a tiny model (2 of 3, {time.monotonic() - began:.0f} s so far)")
    small = _run_part("small engine")
    say(f"measuring an engine with 43 M weights (3 of 3, {time.monotonic() - began:.0f} s so far)")
    large = _run_part("large engine")
    (short, long), (few, many) = trained["seconds"], trained["flops"]
    train_flops = (many - few) / max(1e-3, long - short)
    # Seconds of a token: a part beside arithmetic, which the small model has too, and its arithmetic.
    beside = small["seconds"] / small["tokens"]
    engine_flops = large["flops"] / max(1e-3, large["seconds"] - beside * large["tokens"])
    found = Calibration(
        train_flops=train_flops,
        step_seconds=max(0.0, short - few / train_flops),
        train_start_seconds=trained["start_seconds"],
        token_seconds=beside,
        engine_flops=engine_flops,
        engine_start_seconds=small["start_seconds"],
    )
    write_json(store / MACHINES / f"{name_machine()}.json", found.to_json())
    say(f"measured in {time.monotonic() - began:.0f} s")
    return found


def _run_part(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "found.json"
        command = [sys.executable, "-m", "flows.estimate.calibrate", name, str(result)]
        began = time.monotonic()
        environment = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=LIMIT_SECONDS, env=environment, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Failure(
                f"measuring: {name} took more than {LIMIT_SECONDS:.0f} s; try it on a quieter machine"
            ) from error
        if done.returncode:
            last = " | ".join(done.stderr.strip().splitlines()[-3:])
            raise Failure(f"measuring: {name} failed: {last}")
        found: dict[str, Any] = read_json(result)
        return {**found, "start_seconds": time.monotonic() - began - found.get("worked", 0.0)}


def _make_checkpoint(build: Build, folder: Path) -> ModelShape:
    """Writes a model with random weights to `folder` and returns its shape."""
    import torch

    from stages.tiny.builds.shapes import build_tiny
    from stages.training.trainer import save_weights
    from stages.vlm.checkpoint import write_card

    torch.manual_seed(0)
    texts = [f"The number of row {number} is {number * 7 % 100}." for number in range(500)]
    _, network = build_tiny(FAMILY, build, texts, CONTEXT, 0, folder)
    save_weights(network.model, folder)
    write_card(folder, FAMILY, "fp32", CONTEXT)
    return read_shape(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def time_trainer() -> dict[str, Any]:
    """Seconds and operations of steps with few and with many tokens, of one pack each.

    `worked` are the seconds that are no part of a start: of the checkpoint and of all steps.
    """
    import torch

    from stages.config.runtime import Runtime
    from stages.config.schedule import Schedule
    from stages.groups.log_probs import response_log_probs
    from stages.groups.pack import Group, make_pack
    from stages.training.trainer import Trainer
    from stages.vlm.checkpoint import open_checkpoint
    from stages.vlm.reader import Prompt, load_network, load_reader

    with tempfile.TemporaryDirectory() as folder:
        making = time.monotonic()
        shape = _make_checkpoint(LARGE, Path(folder))
        made = time.monotonic()
        checkpoint = open_checkpoint(Path(folder))
        network = load_network(checkpoint, load_reader(checkpoint), Runtime())
        network.freeze_vision()
        trainer = Trainer(network.trained, Schedule(steps=5, learning_rate=1e-5), Runtime())

        def step(tokens: int) -> float:
            began = time.monotonic()
            places = torch.arange(tokens // 2)
            answers = tuple(tuple(range(8, 8 + tokens // 16)) for _ in range(8))
            prompt = Prompt(places % 100 + 8, places.expand(3, -1).clone(), None)
            pack = make_pack([Group(prompt, answers)], range(1))
            trainer.backward(trainer.forward(lambda: -response_log_probs(network, pack).sum() / 1000), True)
            trainer.step(1e-5)
            return time.monotonic() - began

        first = step(PACKS[0])
        tries = [[step(tokens) for _ in range(2)] for tokens in PACKS]
    seconds = [min(each) for each in tries]
    flops = []
    for tokens in PACKS:
        whole, scored = Range.exactly(tokens), Range.exactly(tokens // 2)
        flops.append((count_layers(shape.text, whole).scale(3) + count_head(shape.text, scored, trains=True)).high)
    return {"seconds": seconds, "flops": flops, "worked": made - making + first + sum(map(sum, tries))}


def time_engine(build: Build, answers: int) -> dict[str, Any]:
    """Seconds, tokens and operations of answers that all have the longest length; `worked` as for the trainer."""
    from stages.config.runtime import Runtime
    from stages.config.sampling import Sampling
    from stages.engines.engine import Request, StartOptions
    from stages.engines.start import start_engine
    from stages.vlm.checkpoint import open_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        making = time.monotonic()
        shape = _make_checkpoint(build, Path(folder))
        made = time.monotonic()
        engine = start_engine(open_checkpoint(Path(folder)), Runtime(), StartOptions(Path(folder) / "logs"))
        try:
            sampling = Sampling(max_tokens=ANSWER_TOKENS)

            def make_requests(count: int) -> Iterator[Request]:
                for number in range(count):
                    text = f"What is the number of row {number}? Say it in words, then add all numbers before it."
                    yield Request(str(number), [{"role": "user", "content": text}], [], sampling, 1, number)

            ready = time.monotonic()
            for _ in engine.iter_outcomes(make_requests(2)):
                pass
            began, out, read = time.monotonic(), 0, 0
            for _, outcome in engine.iter_outcomes(make_requests(answers)):
                if isinstance(outcome, str):
                    raise Failure(f"the engine refused a request: {outcome}")
                out += sum(answer.completion_tokens for answer in outcome)
                read += outcome[0].prompt_tokens
            ended = time.monotonic()
        finally:
            engine.close()
    flops = count_layers(shape.text, Range.exactly(out + read)).high
    return {"seconds": ended - began, "tokens": out, "flops": flops, "worked": made - making + ended - ready}


def read_libraries() -> dict[str, Any]:
    """Imports what stages import, so that their files are in memory."""
    for name in ("deepspeed", "transformers", "vllm"):
        importlib.import_module(name)
    return {}


def main(name: str, result: str) -> None:
    """Measures one part and writes it to `result`."""
    from flows.environment import prepare

    prepare()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "imports": read_libraries,
        "trainer": time_trainer,
        "small engine": lambda: time_engine(SMALL, ANSWERS[0]),
        "large engine": lambda: time_engine(LARGE, ANSWERS[1]),
    }
    write_json(Path(result), parts[name]())


if __name__ == "__main__":
    main(*sys.argv[1:])
