"""Model: makes a tiny model from nothing, or pins a given one.

Reads    params: models.<id>, world
Writes   data/model/<id>: an ordinary Hugging Face checkpoint with its card, or only a card that points to the weights
Run      dvc repro model@student

A tiny model is a real architecture with random weights, trained on the `train` part of the tiny world: students and
teachers on pictures with questions, answered in the styles that `build.styles` names; the judge on verdicts about
written answers. A model from the hub is pinned to a commit, a local one to the hash of its files, and either must be
there now rather than in hour nine.
"""

from pathlib import Path
from typing import Any

from stages.config.model import Model
from stages.job.job import Job
from stages.vlm.checkpoint import find_hub_commit, hash_content, write_card


def run(job: Job) -> None:
    """Writes data/model/<id>. Raises FileNotFoundError when a given model can't be had."""
    model = job.block(Model)
    if model.build is None:
        pin(job, model)
    else:
        from stages.tiny.builds.make import make_model  # here, so that models that are given do not depend on it

        make_model(job, model, model.build)


def pin(job: Job, model: Model) -> None:
    """Writes a card that points to a given model."""
    if model.path is not None:
        weights = (job.root / Path(model.path).expanduser()).resolve()
        if not (weights / "config.json").is_file():
            raise FileNotFoundError(f"models.{job.item}.path is {model.path!r}; there is no config.json in {weights}")
        source: dict[str, Any] = {"path": str(weights), "identity": hash_content(weights)}
    elif model.endpoint is not None:
        source = {"endpoint": model.endpoint.model_dump(mode="json")}
    else:
        assert model.hub is not None
        assert model.revision is not None
        source = {"hub": model.hub, "revision": find_hub_commit(model.hub, model.revision)}
    with job.writing() as folder:
        write_card(folder, model.family, model.precision, model.context_tokens, source)
    job.write_metrics({"pinned": source})
    job.progress.say(f"{job.name}: pinned {', '.join(f'{key} {value}' for key, value in source.items())}")
