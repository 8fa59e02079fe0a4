"""Whether the models of `ril.distillation` have the student's tokenizer, as far as their files are here.

The loop checks it again when it starts; hours of answers of the teachers come before that.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.checks.finding import Finding, make_missing
from flows.checks.models import find_weights
from stages.config.params import Params
from stages.config.placement import LOOP
from stages.job.files import read_json
from stages.job.job import Job
from stages.vlm.identity import CARD
from stages.vlm.shared_ids import explain_difference


def check_distillation(params: Params, jobs: list[Job]) -> Iterator[Finding]:
    """Yields the models that cannot score the student's tokens, if `jobs` has the loop; reads tokenizer.json alone."""
    stages = tuple(job.name for job in jobs if job.stage == LOOP)
    names = params.distilled_models if stages else ()
    found = {name: _read_tokenizer(name, params, jobs[0]) for name in ("student", *names) if names}
    for name in names:
        student, teacher = found["student"], found[name]
        if student is None or teacher is None:
            continue
        if line := explain_difference(("student", student), (name, teacher)):
            yield make_missing("model", "ril.distillation", line.removeprefix("ril.distillation: "), stages)


def _read_tokenizer(name: str, params: Params, job: Job) -> Any:
    """Returns the tokenizer of an entry of `models`; None if it is not here, or only in files of older forms."""
    model = params.models[name]
    folder = job.root / "data" / "model" / name
    if model.build is None:
        weights = find_weights(name, model, job.project)
    else:  # of another family it is what an earlier run has left
        card = folder / CARD
        weights = folder if card.is_file() and read_json(card).get("family") == model.family else Path()
    file = weights / "tokenizer.json" if isinstance(weights, Path) else Path()
    return importlib.import_module("tokenizers").Tokenizer.from_file(str(file)) if file.is_file() else None
