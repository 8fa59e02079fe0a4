"""Whether the models of `ril.distillation` have the student's tokenizer, as far as their files are here.

Of a model that is yet to be built it is known how many tokens it has at most. The loop checks it again when it starts;
hours of answers of the teachers come before that.
"""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.checks.finding import Finding, make_missing
from flows.checks.models import find_weights
from flows.estimate.shapes import TINY_VOCABULARY
from stages.config.params import Params
from stages.config.placement import LOOP
from stages.job.files import read_json
from stages.job.job import Job
from stages.vlm.identity import CARD
from stages.vlm.shared_ids import REMEDY, explain_difference


def check_distillation(params: Params, jobs: list[Job]) -> Iterator[Finding]:
    """Yields the models that cannot score the student's tokens, if `jobs` has the loop; reads tokenizer.json alone."""
    stages = tuple(job.name for job in jobs if job.stage == LOOP)
    names = params.distilled_models if stages else ()
    found = {name: _read_tokenizer(name, params, jobs[0]) for name in ("student", *names) if names}
    for name in names:
        student, teacher = found["student"], found[name]
        if student is not None and teacher is not None:
            line = explain_difference(("student", student), (name, teacher))
        else:
            line = _foresee_difference(params, name, {one: found[one] for one in ("student", name)})
        if line:
            yield make_missing("model", "ril.distillation", line.removeprefix("ril.distillation: "), stages)


def _foresee_difference(params: Params, name: str, found: Mapping[str, Any]) -> str:
    """Returns why a model cannot score the student's tokens, if one of the two is to be built and the other has more
    tokens than it can have; "" otherwise.
    """
    for built, pinned in (("student", name), (name, "student")):
        model, tokenizer = params.models[built], found[pinned]
        if model.build is None or tokenizer is None:
            continue
        most, count = TINY_VOCABULARY[model.family], tokenizer.get_vocab_size(with_added_tokens=False)
        if count > most:
            return (
                f"{name} does not have the tokenizer of the student: {pinned} has {count:,} tokens, and {built} is "
                f"built with {most} at most; {REMEDY}"
            )
    return ""


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
