"""A project in which a run has ended: real questions, tiny checkpoints of random weights, reports as stages write them.

The weights say nothing sensible; answers of a head that is scaled up end soon and differ between models.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from flows.code_record import WatchedCode, write_code_record
from flows.environment import store_folder
from flows.jobs import open_job
from stages import questions
from stages.adversary.discriminator_model import DiscriminatorModel
from stages.config.build import Build
from stages.config.params import load_params
from stages.evaluate import compute_scores
from stages.job.files import read_json
from stages.tiny.builds.shapes import build_tiny
from stages.vlm.chat import Chat
from stages.vlm.checkpoint import open_checkpoint, write_card
from stages.vlm.published_files import write_published_files
from stages.vlm.reader import load_network, load_reader

OVERLAY: dict[str, Any] = {
    "questions": {"splits": {"warm_start": 8, "imitation": 4, "validation": 2, "test": 8}},
    "evaluate": {"max_tokens": 12, "shuffled_images": False, "benchmarks": ["tiny_choice", "tiny_number", "tiny_open"]},
    "verdict": {"max_tokens": 40, "form": "plain"},
    "ril": {"learning_rate": 3.0e-4},
}
_TEXTS = [
    "The digits are 3, 8 and 5: 3:3, 8:11, 5:16, so the sum is 16.",
    "What is the sum of the digits in the image?",
]
# Folder of each checkpoint, its family and the seed of its weights.
_CHECKPOINTS = {
    "data/model/student": ("qwen2_5_vl", 1),
    "data/warm_start": ("qwen2_5_vl", 2),
    "data/ril/model": ("qwen2_5_vl", 3),
    "data/model/qwen2_5_vl": ("qwen2_5_vl", 4),
    "data/model/internvl3": ("internvl3", 5),
    "data/model/judge": ("qwen2_5", 6),
}


def write_tiny_run(project: Path) -> Path:
    """Completes a copy of the project (params.yaml is laid over with OVERLAY already) and returns it."""
    params = load_params(project / "params.yaml")
    questions.run(open_job("questions", None, project, params))
    for place, (family, seed) in _CHECKPOINTS.items():
        write_checkpoint(project / place, family, seed)
    base = open_checkpoint(project / "data" / "warm_start")
    folder = project / "data" / "discriminator"
    folder.mkdir(parents=True)
    DiscriminatorModel(load_network(base, load_reader(base)), 7).save(folder)
    _write_reports(project)
    return project


def write_checkpoint(folder: Path, family: str, seed: int) -> None:
    """Writes a checkpoint as stages do.

    Its head names no image token, so that no ban is needed, and no token that is a part of a character: of an answer
    that ends in one a server that decodes token by token leaves out the end.
    """
    folder.mkdir(parents=True)
    context = 512 if family == "qwen2_5" else 256
    build = Build(
        steps=0, learning_rate=1e-3, hidden_size=64, layers=2, heads=2, vision_hidden_size=32, vision_layers=1
    )
    reader, network = build_tiny(family, build, _TEXTS, context, seed, folder)
    with torch.no_grad():
        network.head.weight.mul_(40)
        network.head.weight[[*reader.chat.banned_token_ids, *list_broken_tokens(reader.chat)]] = 0.0
    network.model.save_pretrained(folder)
    write_published_files(folder)
    write_card(folder, family, "fp32", context)


def list_broken_tokens(chat: Chat) -> list[int]:
    """Returns the tokens that are no printable text by themselves."""
    texts = {number: str(chat.tokenizer.decode([number])) for number in range(len(chat.tokenizer))}
    return [number for number, text in texts.items() if "\ufffd" in text or not text.isprintable()]


def _write_reports(project: Path) -> None:
    params = load_params(project / "params.yaml")
    teachers: Mapping[str, Any] = {
        name: {"answers": 32, "accuracy": 0.9, "kept": 30, "mean_tokens": 11.0} for name in params.pool.teachers
    }
    locked: dict[str, Any] = {}
    for stage, metrics in {
        "warm_start": {"loss": 1.5},
        "pool": {**teachers, "questions": 4},
        "discriminator": {},
        "ril": {"validation": {"start": 0.1, "end": 0.2}},
    }.items():
        job = open_job(stage, None, project, params)
        job.write_metrics(metrics)
        record = WatchedCode(project, stage).record()
        write_code_record(record, job.reports, store_folder(project))
        locked[stage] = {"deps": [{"path": path, "md5": md5} for path, md5 in record.watched.items()], "outs": []}
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": locked}))
    for name in ("base", "ril"):
        rows = [
            {
                "kind": "sum",
                "score": float(number % 4 < (3 if name == "ril" else 2)),
                "score_shuffled": None,
                "decided_by": "rule: number",
                "finish_reason": "stop",
                "completion_tokens": 5,
            }
            for number in range(80)
        ]
        open_job("evaluate", name, project, params).write_metrics(
            {**compute_scores(rows), "benchmarks": {}, "benchmark_errors": {"tiny_choice": "no file"}}
        )
    assert read_json(project / "reports" / "ril" / "params.json")


def copy_run(run: Path, folder: Path) -> Path:
    """Returns a copy that a test may change."""
    return Path(shutil.copytree(run, folder))
