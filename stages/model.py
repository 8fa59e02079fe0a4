"""Model: builds a tiny model from scratch or pins an existing one.

Reads    params: models.<id>, world
Writes   data/model/<id>: a Hugging Face checkpoint with its card, or only a card that points to the weights
Run      dvc repro model@student

A tiny model is a real architecture with random initial weights, trained on the `train` part of the tiny world: students
and teachers on image questions, answered in the styles of `build.styles`; the judge on verdicts about written answers.
A hub model is pinned to a commit, and it and a local model to the hash of the files that decide answers. Both must be
available when this stage runs, so that a missing model fails early; its files must agree with each other and with the
parameters.
"""

from pathlib import Path
from typing import Any

from stages.config.image_limits import NO_LIMITS, ImageLimits, count_image_room
from stages.config.model import Model
from stages.engines.agreement import Agreement, compare_passes
from stages.job.files import read_json, write_json
from stages.job.job import Job
from stages.vlm.checkpoint import DAMAGED_SNAPSHOT, find_hub_commit, find_hub_folder, write_card
from stages.vlm.contents import check_loadable
from stages.vlm.identity import CARD, check_hub_names, combine_hashes, hash_files, keep_content, list_content
from stages.vlm.promises import check_files_present, check_promises
from stages.vlm.reference_pass import describe_checkpoint
from stages.vlm.stored_tensors import read_stored_tensors
from stages.vlm.support import check_supported
from stages.vlm.trial import FoundLimits, try_reading


def run(job: Job) -> None:
    """Writes data/model/<id>. Raises FileNotFoundError when a pinned model is not available, BadWeights when its
    weights at a path are not finite.
    """
    model = job.block(Model)
    if model.build is None:
        pin(job, model)
    else:
        from stages.tiny.builds.make import make_model  # local import: pinned models do not depend on it

        make_model(job, model, model.build)
        if model.verified:
            found = _verify(job, model, job.out, model.limits)
            write_json(job.out / CARD, {**read_json(job.out / CARD), "verified": found.describe()})
            job.write_metrics({**read_json(job.reports / "metrics.json"), "verified": found.measure()})


def pin(job: Job, model: Model) -> None:
    """Writes a card that points to an existing model."""
    weights: Path | None
    if model.path is not None:
        weights = (job.project / Path(model.path).expanduser()).resolve()
        if not (weights / "config.json").is_file():
            raise FileNotFoundError(f"models.{job.item}.path is {model.path!r}, but {weights} has no config.json")
        from stages.vlm.weights import check_files  # local import: a pin of a hub model or an endpoint needs no torch

        found = _check_foreign(job, weights, model)
        check_files(weights)
        source: dict[str, Any] = {"path": str(weights), **_identify(job, weights)}
    elif model.endpoint is not None:
        weights = None
        source = {"endpoint": model.endpoint.model_dump(mode="json")}
        found = FoundLimits(NO_LIMITS, NO_LIMITS)
    else:
        assert model.hub is not None
        assert model.revision is not None
        commit = find_hub_commit(model.hub, model.revision)
        weights = find_hub_folder(model.hub, commit)
        found = _check_foreign(job, weights, model)
        source = {"hub": model.hub, "revision": commit, **_identify(job, weights)}
    limits = choose_limits(model, job.item, found)
    metrics: dict[str, Any] = {"pinned": source}
    if weights is not None and model.verified:
        agreement = _verify(job, model, weights, limits)
        source = {**source, "verified": agreement.describe()}
        metrics["verified"] = agreement.measure()
    with job.writing() as folder:
        write_card(folder, model.family, model.precision, model.context_tokens, source, limits)
    job.write_metrics(metrics)
    job.progress.say(f"{job.name}: pinned {', '.join(f'{key} {value}' for key, value in metrics['pinned'].items())}")
    if limits.list_set():
        why = "set in the parameters" if limits == model.limits else explain_default(model, found)
        job.progress.say(f"{job.name}: images are scaled to {limits} ({why})")


def _verify(job: Job, model: Model, weights: Path, limits: ImageLimits) -> Agreement:
    """Returns how far transformers and vLLM agree on the weights; raises Failure when they do not."""
    asked = describe_checkpoint(weights, model.family, model.context_tokens, limits)
    values = sum(tensor.values for tensor in read_stored_tensors(weights))
    with job.measure_time("verify"):
        found = compare_passes({**asked, "values": values}, str(job.item))
    if found.skipped is not None:
        job.progress.say(f"{job.name}: not verified: {found.skipped}")
    else:
        job.progress.say(
            f"{job.name}: verified: log probabilities of vLLM and transformers differ by at most {found.largest:.2g} "
            f"in fp32 over {found.tokens} tokens (bound {found.bound:g})"
        )
    return found


def _identify(job: Job, weights: Path) -> dict[str, str]:
    """Returns the identity of a folder for its card, and remembers that its files were read."""
    hashes = hash_files(weights, list_content(weights))
    check_hub_names(weights, hashes, DAMAGED_SNAPSHOT)
    identity = combine_hashes(hashes)
    keep_content(weights, identity, job.store, hashes)
    return {"identity": identity}


def _check_foreign(job: Job, weights: Path, model: Model) -> FoundLimits:
    """Returns the limits on images of a folder's processor.

    Raises RefusedCheckpoint when the folder holds code or pickles, is of another family or can't be trained here,
    reading it takes no end, or its files do not keep what they promise: one line a fault.
    """
    name = str(job.item)
    check_loadable(weights)
    check_supported(weights, model, name)
    check_files_present(weights, model, name)
    tensors = read_stored_tensors(weights)
    found = try_reading(weights, model.family, count_image_room(model.context_tokens))
    for remark in check_promises(model, name, found.facts, tensors):
        job.progress.say(f"{job.name}: {remark}")
    return found.limits


def choose_limits(model: Model, name: str | None, found: FoundLimits) -> ImageLimits:
    """Returns the limits on images of a pinned model: those of `models.<name>`, else what leaves room in its context.

    The second are upper limits only, and set only if the processor's own are higher. Raises ValueError if a limit
    contradicts one that is not set.
    """
    limits = model.limits.fill(found.fitting)
    if fault := limits.fill(found.own).find_fault():
        raise ValueError(f"models.{name}: {fault}; set both in models.{name}")
    return limits


def explain_default(model: Model, found: FoundLimits) -> str:
    """Returns why a pinned model has limits that nobody has set, and how to change them."""
    names, room = ", ".join(found.fitting.list_set()), count_image_room(model.context_tokens)
    return (
        f"one image may take {room:,} tokens, half of context_tokens; the processor's own limit is {found.own}; "
        f"{names} of this model sets another"
    )
