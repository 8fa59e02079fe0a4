"""The models that can be asked: the entries of `evaluations` whose checkpoints are here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.jobs import open_job
from stages.config.params import Params
from stages.job.failure import Failure
from stages.job.hub import HubError
from stages.vlm.checkpoint import Checkpoint, open_verified
from stages.vlm.identity import CARD


class ChatError(ValueError):
    """A question, a model or a setting that cannot be asked; the message says what to do."""


@dataclass(frozen=True)
class Candidate:
    """One model that can be asked."""

    name: str  # entry of `evaluations`
    title: str
    checkpoint: Checkpoint


@dataclass(frozen=True)
class LeftOut:
    """A model, the discriminator or the judge that is not asked, and why: with the command that makes it."""

    name: str
    reason: str


def find_candidates(
    root: Path, store: Path, params: Params, asked: Sequence[str] = ()
) -> tuple[list[Candidate], list[LeftOut]]:
    """Returns the models named in `asked` that are here, in that order, and those that are not.

    Without names all entries of `evaluations`, less those at endpoints: these may cost money and are asked by name
    only. Raises ChatError for a name that `evaluations` does not have.
    """
    known = params.evaluations
    if unknown := [name for name in asked if name not in known]:
        raise ChatError(f"no model {unknown[0]!r}; entries of `evaluations` in params.yaml: {', '.join(known)}")
    found: list[Candidate] = []
    missing: list[LeftOut] = []
    for name in dict.fromkeys(asked or known):
        outcome = _open_candidate(root, store, params, name)
        if isinstance(outcome, LeftOut):
            missing.append(outcome)
        elif outcome.checkpoint.endpoint is not None and not asked:
            missing.append(LeftOut(name, f"an endpoint, which may cost money; --models {name} asks it"))
        else:
            found.append(outcome)
    return found, missing


def _open_candidate(root: Path, store: Path, params: Params, name: str) -> Candidate | LeftOut:
    place = params.evaluations[name].checkpoint
    if not (root / place / CARD).is_file():
        return LeftOut(name, str(open_job("evaluate", name, root, params).explain_missing(place)))
    try:
        return Candidate(name, params.evaluations[name].title, open_verified(root / place, store))
    except (FileNotFoundError, Failure, HubError) as error:
        return LeftOut(name, str(error))


def require_candidate(root: Path, store: Path, params: Params, name: str) -> Candidate:
    """Returns the model `name`; raises ChatError when it is not here, with the command that makes it."""
    found, missing = find_candidates(root, store, params, [name])
    if missing:
        raise ChatError(f"{missing[0].name}: {missing[0].reason}")
    return found[0]
