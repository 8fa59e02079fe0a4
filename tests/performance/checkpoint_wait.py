"""How long a training step waits for a checkpoint: written while it waits, and written while the next steps compute.

    python tests/performance/checkpoint_wait.py [--width 1024] [--layers 64] [--steps 12] [--folder /tmp]

Trains a stack of linear layers (67 million parameters, 0.8 GB of state) with the project's `TrainingState`, with a
checkpoint after every fourth step; once as it is, and once as where too little host memory is free. Prints for each the
seconds that a step waits for a checkpoint, the seconds until it is on the disk, and the seconds of the other steps.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("while it waits", "beside the steps")
EVERY = 4  # steps from one checkpoint to the next


def train(way: str, given: argparse.Namespace) -> None:
    """Trains in this process; prints the figures as JSON."""
    sys.path.insert(0, str(ROOT))
    import torch

    from flows.jobs import open_job
    from stages.config.params import load_params
    from stages.config.runtime import Runtime
    from stages.config.schedule import Schedule
    from stages.job.stop import STOP
    from stages.training import background, state
    from stages.training.state import TrainingState
    from stages.training.trainer import Trainer

    torch.manual_seed(0)
    state.find_interval = lambda *_: float("inf")  # type: ignore[assignment]
    if way == WAYS[0]:
        background.measure_free_memory = lambda: 0
    job = open_job("warm_start", None, given.folder, load_params(ROOT / "params.yaml"))
    job = replace(job, run_folder=given.folder / "state", store=given.folder / "store")
    (given.folder / "state").mkdir()
    model = torch.nn.Sequential(*(torch.nn.Linear(given.width, given.width) for _ in range(given.layers)))
    trainer = Trainer(model, Schedule(steps=given.steps, learning_rate=1e-4), Runtime(zero_stage=2))
    training = TrainingState(job, {"model": trainer})
    found = SimpleNamespace(waits=[], written=[], steps=[], beside=[])
    for step in training.iter_steps(given.steps, "steps"):
        begun = time.monotonic()
        inputs = torch.randn(given.rows, given.width)
        trainer.backward(trainer.forward(lambda inputs=inputs: model(inputs).square().mean()), last=True)
        trainer.step(1e-4)
        seconds = time.monotonic() - begun
        (found.beside if training._writer._work and step % EVERY == 0 and step else found.steps).append(seconds)
        if step % EVERY == EVERY - 1 and step + 1 < given.steps:
            if training._writer._work:
                training._finish_writing()
                found.written.append(STOP.save_seconds)
            begun = time.monotonic()
            training._save(given.folder / "state", step + 1)
            found.waits.append(time.monotonic() - begun)
    found.written.append(STOP.save_seconds)
    print(json.dumps({**vars(found), "bytes": trainer.estimate_state_bytes()}))


def main() -> None:
    """Measures both ways in fresh processes."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--width", type=int, default=1024)
    parse.add_argument("--layers", type=int, default=64)
    parse.add_argument("--rows", type=int, default=64, help="of a step")
    parse.add_argument("--steps", type=int, default=17)
    parse.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parse.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    given = parse.parse_args()
    if given.child:
        train(given.child, given)
        return
    for way in WAYS:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", way, "--folder", folder]
            said = subprocess.run(
                command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, check=True
            )
        found = SimpleNamespace(**json.loads(said.stdout.strip().splitlines()[-1]))
        print(
            f"{way}: {found.bytes / 1e9:.2f} GB; a step waits {statistics.median(found.waits):.2f} s "
            f"(first {found.waits[0]:.2f}), on the disk after {statistics.median(found.written):.2f} s; a step takes "
            f"{statistics.median(found.steps):.2f} s, beside a write {statistics.median(found.beside or [0]):.2f} s"
        )


if __name__ == "__main__":
    main()
