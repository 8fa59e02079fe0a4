"""Makes the golden files of C13: parameters after one optimizer step of TRL's GRPOTrainer.

    tests/performance/against_trl/environment.sh FOLDER      # once: TRL in an environment of its own
    python tests/conformance/c13_golden.py FOLDER/bin/python

The model, questions, answers and rewards are those of `fixture`, a function of the seed; beside the parameters each
file holds their hash before the step, the prompts' token ids and TRL's version.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.performance.against_trl.fixture import Shape

HERE = Path(__file__).parent
SHAPES = {
    weight: Shape(
        image_tokens=4,
        length=9,
        questions=2,
        ragged=True,
        kl_weight=weight,
        hidden_size=32,
        heads=1,
        layers=2,
        vision_hidden_size=16,
        vision_layers=1,
        vocabulary=0,
    )
    for weight in (0.0, 0.01)
}


def golden_file(weight: float) -> Path:
    """The golden file for this weight of the KL term."""
    return HERE / f"c13_beta_{weight}.npz"


def weights_hash(folder: Path) -> str:
    """sha256 of the weights of a fixture."""
    return hashlib.sha256((folder / "checkpoint" / "model.safetensors").read_bytes()).hexdigest()


def make(weight: float, python: str) -> None:
    """Writes one golden file."""
    from safetensors.numpy import load_file

    from tests.performance.against_trl.fixture import write_fixture
    from tests.performance.against_trl.pipe import Worker

    version = subprocess.run(
        [python, "-c", "import trl; print(trl.__version__)"], capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder, before, after = (Path(temporary) / name for name in ("fixture", "before", "after"))
        write_fixture(folder, SHAPES[weight])
        script = HERE.parent / "performance" / "against_trl" / "theirs.py"
        worker = Worker("trl", [python, str(script), str(folder)])
        worker.ask("dump", str(before))  # a checkpoint has other names
        worker.ask("step")
        prompts = worker.ask("prompts")["ids"]
        worker.ask("dump", str(after))
        worker.close()
        start = load_file(before)
        trained = {name: value for name, value in load_file(after).items() if not (value == start[name]).all()}
        about = {"trl": version.stdout.strip(), "weights": weights_hash(folder), "prompts": prompts}
        np.savez_compressed(golden_file(weight), about=np.array(json.dumps(about)), **trained)
    print(f"{golden_file(weight)}: {len(trained)} parameters that TRL {about['trl']} moved")


if __name__ == "__main__":
    for each in SHAPES:
        make(each, sys.argv[1])
