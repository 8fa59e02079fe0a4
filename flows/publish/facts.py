"""What is known of a trained checkpoint: models that it comes from, data, settings, code, scores.

All of it is read from what stages wrote (reports/, cards of models, dvc.lock), never from memory or from names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.code_record import BadRecord, read_accepted, read_code_record
from flows.digest import hash_code
from flows.dvc.experiments import read_repository
from flows.environment import store_folder
from flows.lockfile import read_locked_stages
from flows.publish.licences import LICENCES, OWN, Licence, find_licence
from stages.benchmarks.scores import NORMAL_95
from stages.config.block import Block
from stages.config.discriminator import Discriminator
from stages.config.params import Params
from stages.config.ril import Ril
from stages.config.verdict import Verdict
from stages.config.warm_start import WarmStart
from stages.config.yaml import compare_values
from stages.job.files import read_json
from stages.job.hub import HubError
from stages.responses.about import read_licence
from stages.vlm.checkpoint import Checkpoint, open_checkpoint
from stages.vlm.identity import CARD

# Checkpoints that are trained here, and the stages that trained them, the last one first.
TRAINED: Mapping[str, tuple[str, ...]] = {
    "data/ril/model": ("ril", "warm_start"),
    "data/ril/last": ("ril", "warm_start"),
    "data/warm_start": ("warm_start",),
}
_BLOCKS: Mapping[str, type[Block]] = {
    "warm_start": WarmStart,
    "discriminator": Discriminator,
    "ril": Ril,
    "verdict": Verdict,
}
ANOTHER_IMAGE = "with another image"  # in the remark on a score with shuffled images
_SPLITS = ("warm_start", "imitation", "validation", "test")  # as they are used
_SHOWN = 12  # hexadecimal digits of a hash
_UNSEEN = {"reward_code"}  # keys that say where DVC looks, not what a stage does


class PublishError(ValueError):
    """A checkpoint that cannot be published as it is; the message says what to do."""


@dataclass(frozen=True)
class ModelOrigin:
    """A model that the checkpoint was made from, or with the help of."""

    role: str  # base, teacher, judge
    entry: str  # of `models`
    name: str  # hub name, folder's name, endpoint, or that it was trained here
    hub: str = ""  # owner/name; "" for a model that is not of the hub
    revision: str = ""
    licence: Licence | None = None  # None: unknown


@dataclass(frozen=True)
class Setting:
    """A setting that is not the default."""

    key: str
    value: Any
    default: Any  # None where there is none


@dataclass(frozen=True)
class MeasuredScore:
    """One score of one model with the half width of its 95 % interval, in per cent."""

    model: str
    own: bool  # whether the model is the checkpoint
    title: str
    value: float
    half_width: float
    rows: int
    rule: str
    source: str = ""  # file or data set
    remark: str = ""


@dataclass(frozen=True)
class CheckpointFacts:
    """All that a card says."""

    checkpoint: Checkpoint
    stage: str
    origins: Sequence[ModelOrigin]
    data: Mapping[str, Any]  # kind, data sets of the hub, splits, hash of the rows; no paths of the publisher
    pool: Mapping[str, Any]  # reports/pool/metrics.json; empty for a warm start
    settings: Sequence[Setting]
    seed: int | None
    commit: str  # of the project; "" outside of a repository
    code: Mapping[str, str]  # hash of each stage's code
    accepted: Sequence[str]  # changes of code since, that were accepted with a reason
    scores: Sequence[MeasuredScore]
    unmeasured: Sequence[str]  # what has no score, and why
    lora: Mapping[str, Any] | None  # of the last stage, if it trained adapters

    @property
    def base(self) -> ModelOrigin:
        """The model that training started from."""
        return next(one for one in self.origins if one.role == "base")


def collect_facts(root: Path, params: Params, folder: str) -> CheckpointFacts:
    """Returns what is known of the checkpoint in `folder`, a key of TRAINED.

    Raises PublishError for another folder, and when the reports of its stages are not there.
    """
    if folder not in TRAINED:
        raise PublishError(f"{folder} is not trained here; checkpoints that are: {', '.join(TRAINED)}")
    if not (root / folder / CARD).is_file():
        raise PublishError(f"{folder} is missing; make it with: dvc repro {TRAINED[folder][0]}")
    stages = TRAINED[folder]
    recorded = {stage: _read_report(root, stage, "params.json") for stage in stages}
    checkpoint = open_checkpoint(root / folder)
    scores, unmeasured = collect_scores(root, params, folder, checkpoint.identity)
    locked, store = read_locked_stages(root), store_folder(root)
    commit = read_repository(root).code
    last = recorded[stages[0]]
    return CheckpointFacts(
        checkpoint=checkpoint,
        stage=stages[0],
        origins=list(_iter_origins(root, params, recorded)),
        data=_describe_data(root),
        pool=_read_report(root, "pool", "metrics.json") if stages[0] == "ril" else {},
        settings=[one for stage in reversed(stages) for one in list_settings(recorded[stage])],
        seed=last.get("seed"),
        commit=commit,
        code={stage: _hash_recorded_code(root, store, locked, stage) for stage in stages},
        accepted=[f"{stage}: {one.because}" for stage in stages for one in read_accepted(root / "reports" / stage)],
        scores=scores,
        unmeasured=unmeasured,
        lora=last.get(stages[0], {}).get("lora"),
    )


def _read_report(root: Path, stage: str, name: str) -> dict[str, Any]:
    path = root / "reports" / stage / name
    if not path.is_file():
        raise PublishError(f"reports/{stage}/{name} is missing, so the card would lack it; run: dvc repro {stage}")
    return read_json(path)


def _iter_origins(root: Path, params: Params, recorded: Mapping[str, Mapping[str, Any]]) -> Iterator[ModelOrigin]:
    """Yields the base, and for stage `ril` the teachers of the pool and the judge."""
    yield describe_origin(root, "base", "student")
    if "ril" not in recorded:
        return
    for name in _read_report(root, "pool", "params.json")["pool"]["teachers"]:
        if name in params.teachers:
            yield describe_origin(root, "teacher", params.teachers[name].model)
        else:
            yield ModelOrigin("teacher", name, f"{name}, which params.yaml no longer names")
    yield describe_origin(root, "judge", recorded["ril"]["verdict"]["model"])


def describe_origin(root: Path, role: str, entry: str) -> ModelOrigin:
    """Returns the entry of `models` as its card names it; raises PublishError when it has none."""
    folder = root / "data" / "model" / entry
    if not (folder / CARD).is_file():
        raise PublishError(f"data/model/{entry}/{CARD} is missing; make it with: dvc repro model@{entry}")
    card = read_json(folder / CARD)
    if "endpoint" in card:
        name = str(card["endpoint"]["name"])
        return ModelOrigin(
            role, entry, f"{name}, an endpoint of {card['endpoint']['provider']}", licence=find_licence(name)
        )
    if "hub" in card:
        name = str(card["hub"])
        return ModelOrigin(role, entry, name, name, str(card["revision"]), find_licence(name, _read_stated(folder)))
    if "path" in card:
        stated = _read_stated(folder)
        return ModelOrigin(role, entry, Path(card["path"]).name, licence=find_licence("", stated))
    return ModelOrigin(role, entry, f"{entry}: trained by this project from random weights", licence=LICENCES[OWN])


def _read_stated(folder: Path) -> str | None:
    """Returns the licence on the card beside the weights, if these are on this machine."""
    try:
        stated = read_licence(open_checkpoint(folder).weights)
    except (FileNotFoundError, HubError):
        return None
    return str(stated) if stated else None


def _describe_data(root: Path) -> dict[str, Any]:
    metrics, questions = _read_report(root, "questions", "metrics.json"), _read_report(root, "questions", "params.json")
    block = questions["questions"]
    sources = block.get("sources") or []
    return {
        "kind": block["kind"],
        "hub": [str(one["hub"]) for one in sources if one.get("hub")],
        "splits": {name: metrics["splits"][name] for name in _SPLITS if name in metrics["splits"]},
        "content": str(metrics.get("content_sha256", ""))[:_SHOWN],
    }


def list_settings(recorded: Mapping[str, Any]) -> list[Setting]:
    """Returns the settings of the blocks in a stage's params.json whose values are not the defaults."""
    found = []
    for name, kind in _BLOCKS.items():
        if isinstance(values := recorded.get(name), Mapping):
            found += [
                Setting(key, value, default)
                for key, default, value in compare_values(_list_defaults(kind), values, above=f"{name}.")
                if value is not None and key.rpartition(".")[2] not in _UNSEEN
            ]
    return found


def _list_defaults(kind: type[Block]) -> dict[str, Any]:
    """Returns the defaults of a block as plain values; keys that have none are left out."""
    fields = {name: field for name, field in kind.model_fields.items() if not field.is_required()}
    values = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    plain = kind.model_construct(**values).model_dump(mode="json", include=set(values), warnings=False)
    return {name: plain[name] for name in values}


def _hash_recorded_code(root: Path, store: Path, locked: Mapping[str, Any], stage: str) -> str:
    """Returns the hash of the code that made a result, "" where nothing says it."""
    watched = {dep["path"]: dep.get("md5", "") for dep in locked.get(stage, {}).get("deps", [])}
    try:
        record = read_code_record(root / "reports" / stage, store, watched)
    except BadRecord as error:
        raise PublishError(str(error)) from error
    return "" if record is None else hash_code(record.code)[:_SHOWN]


def collect_scores(root: Path, params: Params, folder: str, identity: str) -> tuple[list[MeasuredScore], list[str]]:
    """Returns the scores of all evaluated models, those of the checkpoint first, and what was not measured.

    Scores that are recorded for another content of the same folder are left out.
    """
    found: list[MeasuredScore] = []
    unmeasured: list[str] = []
    for name, evaluation in params.evaluations.items():
        path, own = root / "reports" / "evaluate" / name / "metrics.json", evaluation.checkpoint == folder
        if not path.is_file():
            unmeasured.append(f"{evaluation.title}: not evaluated (`dvc repro evaluate@{name}`)")
        elif own and (other := _find_other_identity(root, name, identity)):
            unmeasured.append(
                f"{evaluation.title}: its scores are of an earlier content of {folder} ({other[:_SHOWN]}); run: dvc "
                f"repro evaluate@{name}"
            )
        else:
            metrics = read_json(path)
            found += _list_scores(metrics, evaluation.title, own, params)
            for benchmark, reason in metrics.get("benchmark_errors", {}).items():
                unmeasured.append(f"{evaluation.title}, {benchmark}: {reason}")
    if not any(evaluation.checkpoint == folder for evaluation in params.evaluations.values()):
        unmeasured.append(f"no entry of `evaluations` in params.yaml scores {folder}")
    return sorted(found, key=lambda one: not one.own), unmeasured


def _find_other_identity(root: Path, name: str, identity: str) -> str:
    """Returns the identity in the records of predictions if it is not `identity`; "" if equal or not recorded."""
    for manifest in sorted((root / "data" / "evaluate" / name).glob("*/manifest.json")):
        if (other := str(read_json(manifest).get("model", ""))) not in ("", identity):
            return other
    return ""


def _list_scores(metrics: Mapping[str, Any], model: str, own: bool, params: Params) -> Iterator[MeasuredScore]:
    rule = "rules and judge" if params.evaluate.scoring == "rules_and_judge" else "rules"
    shuffled = metrics.get("accuracy_shuffled")
    yield MeasuredScore(
        model,
        own,
        f"held-out questions ({params.evaluate.split})",
        100 * metrics["accuracy"],
        100 * NORMAL_95 * metrics["standard_error"],
        metrics["questions"],
        rule,
        remark="" if shuffled is None else f"{100 * shuffled:.1f} {ANOTHER_IMAGE}",
    )
    for numbers in metrics.get("benchmarks", {}).values():
        if numbers["score"] is not None:
            yield MeasuredScore(
                model,
                own,
                numbers["title"],
                numbers["score"],
                numbers["error"],
                numbers["units"],
                numbers["profile"],
                str(numbers.get("source") or ""),
                "" if numbers["complete"] else "incomplete",
            )
