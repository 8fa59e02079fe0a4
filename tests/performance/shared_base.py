"""Memory of the loop's process with one copy of the student's weights, beside the one with three.

    python -m tests.performance.shared_base [--hidden 768] [--layers 12]   # needs the package bitsandbytes

Each arm runs in a process of its own: it loads student, reference and discriminator as stage `ril` does, and makes one
update of both. Bytes are those that the process holds beyond its state before the models were loaded.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LORA = {"rank": 16, "alpha": 32.0}
ARMS: dict[str, dict[str, Any]] = {
    "own weights": {},
    "adapters": {"ril": {"lora": LORA}, "discriminator": {"lora": LORA}},
}
STEPS = 2  # DeepSpeed allocates the moments in the first


def build(folder: Path, hidden: int, layers: int) -> int:
    """Writes the student and its questions; returns the number of the student's weights."""
    from stages.config.build import Build
    from stages.tiny.builds.shapes import build_tiny
    from stages.vlm.checkpoint import write_card
    from tests.loop.world import ENDPOINT, LEARNING, PROSE, write_questions

    shape = Build(
        steps=0,
        learning_rate=1e-3,
        hidden_size=hidden,
        layers=layers,
        heads=hidden // 64,
        vision_hidden_size=64,
        vision_layers=2,
    )
    place = folder / "data" / "warm_start"
    _, network = build_tiny("qwen2_5_vl", shape, PROSE, 256, 1, place)
    network.model.save_pretrained(place)
    write_card(place, "qwen2_5_vl", "fp32", 256)
    (folder / "data" / "model" / "judge").mkdir(parents=True)
    write_card(folder / "data" / "model" / "judge", "remote", "bf16", 4096, {"endpoint": ENDPOINT})
    write_questions(folder, "imitation", LEARNING)
    return sum(one.numel() for one in network.model.parameters())


def write_discriminator(folder: Path, arm: str) -> None:
    """Writes a discriminator as it is before its training."""
    from stages.adversary.discriminator_model import DiscriminatorModel
    from stages.config.lora import Lora
    from stages.vlm.checkpoint import open_checkpoint
    from stages.vlm.reader import load_network, load_reader

    checkpoint = open_checkpoint(folder / "data" / "warm_start")
    network = load_network(checkpoint, load_reader(checkpoint))
    if lora := ARMS[arm].get("discriminator", {}).get("lora"):
        network = network.add_adapter("discriminator", Lora(**lora), seed=1)
    place = folder / "data" / "discriminator" / arm
    place.mkdir(parents=True)
    DiscriminatorModel(network, seed=1).save(place)


def list_base_bytes(folder: Path) -> dict[str, int]:
    """Bytes of the frozen model by its precision."""
    import torch

    from stages.vlm.checkpoint import open_checkpoint
    from stages.vlm.reader import load_network, load_reader

    checkpoint = open_checkpoint(folder / "data" / "warm_start")
    found = {}
    for name, precision in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        network = load_network(checkpoint, load_reader(checkpoint))
        network.model.to(precision)
        found[name] = sum(one.nbytes for one in network.model.state_dict().values())
        network.quantize()
        found[f"NF4, the rest {name}"] = sum(one.nbytes for one in network.model.state_dict().values())
    return found


def read_memory(field: str) -> int:
    """Bytes of VmRSS or VmHWM of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def measure(folder: Path, arm: str) -> None:
    """Loads the models of one arm, updates both and prints the bytes as JSON."""
    import gc
    from dataclasses import replace

    import deepspeed  # noqa: F401  (its import is no part of what is measured)
    import peft  # noqa: F401

    from stages.adversary.discriminator_model import Text
    from stages.config.discriminator import Discriminator
    from stages.config.ril import Ril
    from stages.loop.models import choose_base, load_adversary, load_policy
    from stages.policy.batch import RewardedGroup
    from stages.policy.rewards import score_group
    from stages.vlm.checkpoint import open_checkpoint
    from stages.vlm.reader import load_reader
    from tests.loop.world import make_job
    from tests.stages.rollout_fixtures import answers, picture

    job = make_job("ril", folder, ARMS[arm])
    objective = job.block(Ril).resolve(job.block(Discriminator))
    checkpoint = open_checkpoint(folder / "data" / "warm_start")
    reader = load_reader(checkpoint)
    (folder / "data" / "discriminator" / "discriminator.safetensors").unlink(missing_ok=True)
    source = folder / "data" / "discriminator" / arm / "discriminator.safetensors"
    (folder / "data" / "discriminator" / "discriminator.safetensors").symlink_to(source)
    before = read_memory("VmRSS")
    policy = load_policy(job, checkpoint, reader, objective)
    adversary = load_adversary(job, choose_base(job, checkpoint, reader, policy.reference), reader, objective)
    gc.collect()
    found = {"loaded": read_memory("VmRSS") - before}
    rows = answers(reader)
    messages = [{"role": "user", "content": "<image>What is the sum?"}]
    prompt = reader.make_prompt(messages, [picture()])
    scored = tuple(score_group([replace(one, verdict=place % 2) for place, one in enumerate(rows)], [1.0, -1.0] * 2))
    for _ in range(STEPS):
        adversary.learn(rows, [Text(one.text, "q") for one in rows])
        policy.update([RewardedGroup(prompt, scored)], 1e-5)
    gc.collect()
    found |= {"after updates": read_memory("VmRSS") - before, "peak": read_memory("VmHWM") - before}
    print(json.dumps(found))


def main() -> None:
    """Measures each arm and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "ARM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(Path(given.measure[0]), given.measure[1])
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        count = build(folder, given.hidden, given.layers)
        sizes = ", ".join(f"{value / 1e6:.1f} MB in {name}" for name, value in list_base_bytes(folder).items())
        print(f"{count / 1e6:.1f} M weights: one copy is {sizes}; MB of the process in fp32\n")
        print("| trained | models loaded | after two updates | peak |\n|---|---|---|---|")
        for arm in ARMS:
            write_discriminator(folder, arm)
            # Freed tensors go back to the system, so that the resident set is what is in use.
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
            command = [sys.executable, "-m", "tests.performance.shared_base", "--measure", place, arm]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"| {arm} | " + " | ".join(f"{value / 1e6:.0f}" for value in found.values()) + " |")


if __name__ == "__main__":
    main()
