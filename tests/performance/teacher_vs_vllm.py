"""Tokens/s of the teacher stage against bare `vllm.LLM.generate` on the same prompts, in one process; nobody else's
clock.

    python tests/performance/teacher_vs_vllm.py [--prompts 2000] [--samples 1] [--rounds 2] [--lognormal]

Both sides get the same tiny checkpoint, the same settings of vLLM, the same prompts and sampling, and their own fresh
engine. The stage's seconds hold everything but start and end of the engine: reading questions, keys, tokenising,
decoding pictures and texts, the store, the projection. The bare side's are those of `generate` alone, prompts tokenised
and pictures decoded before. CPU time is given too: on a machine that others use it is the steadier figure.
With `--lognormal` the lengths of answers are forced, the same on both sides: lognormal with mean 60 and sigma 1.
"""

import argparse
import io
import math
import os
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
MEAN_TOKENS, SIGMA = 60, 1.0


def force_lengths() -> None:
    """Makes every answer as long as a lognormal draw from its request's seed, within the context of 256 tokens."""
    from stages.engines.vllm import VllmEngine

    make = VllmEngine._make_sampling

    def with_length(self: VllmEngine, request: Any) -> Any:
        sampling = make(self, request)
        drawn = random.Random(request.seed).lognormvariate(math.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA)
        sampling.max_tokens, sampling.ignore_eos, sampling.stop_token_ids = max(1, round(drawn)), True, []
        return sampling

    VllmEngine._make_sampling = with_length  # type: ignore[method-assign]


def questions(folder: Path, count: int) -> None:
    """Questions of the tiny world, with their pictures."""
    from stages.config.world import World
    from stages.corpora.kept_questions import write_kept_questions
    from stages.corpora.rows import QUESTION_SCHEMA
    from stages.job.files import write_shards
    from stages.tiny.world_rows import iter_world_rows

    rows = [row for row, _ in zip(iter_world_rows(World(), "imitation"), range(count), strict=False)]
    write_shards(folder / "imitation", [_without_target(row) for row in rows], QUESTION_SCHEMA)
    write_kept_questions(folder.parent / "selection/kept", "imitation", [row["id"] for row in rows])


def _without_target(row: dict[str, Any]) -> dict[str, Any]:
    messages = row["messages"]
    return {**row, "messages": messages[:-1] if messages[-1]["role"] == "assistant" else messages}


def model(folder: Path) -> None:
    """A tiny InternVL with random weights of the shape of the tiny profile's teacher."""
    from stages.config.build import Build
    from stages.config.params import load_params
    from stages.tiny.builds.shapes import build_tiny
    from stages.vlm.checkpoint import write_card

    params = load_params(Path("params.yaml")).models["internvl3"]
    assert isinstance(params.build, Build)
    folder.mkdir(parents=True)
    texts = [
        "The digits are 3, 8 and 5: 3:3, 8:11, 5:16, so the sum is 16.",
        "What is the sum of the digits in the image?",
    ]
    _, network = build_tiny(params.family, params.build, texts, params.context_tokens, 1, folder)
    network.model.save_pretrained(folder)
    write_card(folder, params.family, params.precision, params.context_tokens)


def job_in(project: Path, samples: int) -> Any:
    """The stage teacher@internvl3 with `samples` answers a question."""
    from flows.jobs import open_job
    from stages.config.params import validate_params
    from stages.config.yaml import merge_params, read_yaml

    values = merge_params(read_yaml(Path("params.yaml")), {"teachers": {"internvl3": {"responses": samples}}})
    return open_job("teacher", "internvl3", project, validate_params(values))


def stage(project: Path, samples: int) -> dict[str, float]:
    """Runs the stage with an empty store: tokens, seconds and CPU seconds of everything but the engine's start and
    end.
    """
    from stages import teacher
    from stages.engines.vllm import VllmEngine
    from stages.job.files import read_json

    aside = {"seconds": 0.0, "cpu": 0.0}
    starts, ends = VllmEngine.__init__, VllmEngine.close

    def started(self: VllmEngine, *arguments: Any, **named: Any) -> None:
        with timed(aside):
            starts(self, *arguments, **named)

    def ended(self: VllmEngine) -> None:
        with timed(aside):
            ends(self)

    VllmEngine.__init__, VllmEngine.close = started, ended  # type: ignore[method-assign]
    shutil.rmtree(os.environ["RIL_STORE"], ignore_errors=True)
    job = job_in(project, samples)
    spent = {"seconds": 0.0, "cpu": 0.0}
    with timed(spent):
        teacher.run(job)
    VllmEngine.__init__, VllmEngine.close = starts, ends  # type: ignore[method-assign]
    job.write_timing(spent["seconds"])
    said = read_json(job.reports / "timing.json")["answers"]
    return {"tokens": said["completion_tokens_paid"], **{name: spent[name] - aside[name] for name in spent}}


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Adds wall and CPU seconds of the block."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    spent["seconds"] += time.perf_counter() - wall
    spent["cpu"] += time.process_time() - cpu


def bare(project: Path, samples: int) -> dict[str, float]:
    """The same prompts through vLLM's own `LLM.generate`."""
    from PIL import Image

    from stages.config.runtime import Runtime
    from stages.config.teacher import Teacher
    from stages.corpora.rows import read_questions
    from stages.engines.engine import Request
    from stages.engines.vllm import VllmEngine
    from stages.responses.answers import make_generation_spec
    from stages.responses.key import derive_request_seed
    from stages.vlm.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(project / "data/model/internvl3")
    job = job_in(project, samples)
    teacher = job.block(Teacher)
    asked = make_generation_spec(checkpoint, teacher.sampling, 0, job.store)
    engine = VllmEngine(checkpoint, Runtime())
    asked_questions = read_questions(project / "data/questions", "imitation")
    spent = {"seconds": 0.0, "cpu": 0.0}
    inputs, sampling = [], []
    for question in asked_questions:
        seed = derive_request_seed(asked.request_key(question.messages, question.image_sha256))
        request = Request(question.id, question.messages, question.images, teacher.sampling, samples, seed)
        pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in question.images]
        ids = engine.chat.encode_prompt(question.messages, len(question.images))
        inputs.append({"prompt_token_ids": ids, "multi_modal_data": {"image": pictures}})
        settings = engine._make_sampling(request)
        settings.detokenize = True  # as a caller of generate gets it
        sampling.append(settings)
    with timed(spent):
        outputs = engine._llm.generate(inputs, sampling, use_tqdm=False)
    engine.close()
    return {"tokens": sum(len(one.token_ids) for output in outputs for one in output.outputs), **spent}


def main() -> None:
    """Prints one line a round and side, and the ratio of the best rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--lognormal", action="store_true")
    options = parser.parse_args()
    from flows.environment import prepare

    prepare()
    if options.lognormal:
        force_lengths()
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)
        os.environ["RIL_STORE"] = str(project / "store")
        questions(project / "data/questions", options.prompts)
        model(project / "data/model/internvl3")
        rates: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.rounds):
            for side, run in (("bare", bare), ("stage", stage)):
                found = run(project, options.samples)
                for clock in ("seconds", "cpu"):
                    rates[f"{side} {clock}"].append(found["tokens"] / found[clock])
                print(
                    f"{side}: {found['tokens']:.0f} tokens in {found['seconds']:.1f} s, CPU {found['cpu']:.1f} s",
                    flush=True,
                )
        wall, cpu = (max(rates[f"stage {clock}"]) / max(rates[f"bare {clock}"]) for clock in ("seconds", "cpu"))
        print(
            f"{options.prompts} prompts x {options.samples}, best of {options.rounds}: teacher stage / bare "
            "vllm.LLM.generate = "
            f"{wall:.3f} by the clock ({max(rates['stage seconds']):.0f} / {max(rates['bare seconds']):.0f} tokens/s), "
            f"{cpu:.3f} by CPU time"
        )


if __name__ == "__main__":
    main()
