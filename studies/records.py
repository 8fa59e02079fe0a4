"""What is kept of a finished experiment: a JSON and a CSV, small enough for Git, with hashes of what they came from.

    studies/results/<study>/{tuning,compared}/<arm>-w<world>-s<seed>.{json,csv}

The page is written from these files alone.
"""

import csv
import hashlib
import io
import json
import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.dvc.recorded import RecordedExperiment
from flows.lockfile import parse_locked_stages
from stages.config.params import Params, validate_params
from stages.config.yaml import read_yaml
from stages.groups.response import STUDENT
from stages.job import metric_names as names
from stages.job.files import read_json, read_shards, write_text
from stages.job.hashes import hash_json
from stages.job.metric_names import source_of
from studies.faults import compute_fault_curves, compute_fault_shares, find_fault_answers
from studies.loop_tokens import count_arm_tokens
from studies.runs import COMPARED, Run
from studies.study import extract_budget

LAST_TWO = "last_two"  # mean of the last two validation scores
NO_VERDICT = "-"  # mark of an answer that is neither right nor wrong
_NUMBER = re.compile(r"\d+")
_WEIGHTS = ("model", "warm_start")  # their weights depend on the kind of machine, whose rounding they amplify
_DIGITS = 16  # of a hash of code: enough to tell them apart
_OWN_FORM = 0.05  # a form that a teacher uses in fewer of its answers is an accident, not its style
_CURVES = (
    *(names.STEP, names.PASSED, names.STUDENT_CUT, names.EQUAL_REWARDS, names.CORRECT_NEGATIVE_ADVANTAGE),
    *(names.SIMILARITY, names.ANSWER, names.ADVANTAGE, names.LENGTH),
    *(
        names.DISC_ACCURACY,
        names.DISC_ACCURACY_OF,
        names.for_source(names.KL, "{}"),
        names.for_source(names.ENTROPY, "{}"),
    ),
)


@dataclass(frozen=True)
class StudyRecord:
    """What is known of one finished run; everything in it was measured by it."""

    study: str
    purpose: str
    arm: str
    title: str
    world: int
    seed: int
    swept: dict[str, float]
    # where it comes from
    key: str  # Run.key
    params_sha256: str
    overrides: list[str]
    experiment: str  # name of the DVC experiment, revision of its commit, commit that it was started from
    revision: str
    commit: str
    committed: bool  # whether all code of the run is in that commit
    code: dict[str, str]  # hash of the code of every stage on the way
    lock_sha256: str
    seconds: dict[str, float]  # wall time of the stages that this run made itself
    budget: dict[str, Any]
    # what came out
    core_seconds: dict[str, float] = field(default_factory=dict)  # the same in time of cores
    stages: dict[str, str] = field(default_factory=dict)  # key of every stage on the way: equal keys are one stage
    weights: dict[str, str] = field(default_factory=dict)  # hash of what each stage of _WEIGHTS made
    tokens: dict[str, float] = field(default_factory=dict)  # of the loop: sampled from the student, read of teachers
    validation: dict[str, float] = field(default_factory=dict)  # start, end, last_two; of trained arms
    validations: dict[str, list[float]] = field(default_factory=dict)  # by column, one value an evaluation
    discriminator: dict[str, float] = field(default_factory=dict)  # held out, before the loop
    scores: dict[str, Any] = field(default_factory=dict)  # of reports/evaluate/<id>, without benchmarks
    right: str = ""  # 1, 0 or - (no verdict) for each test question, in the order of their ids
    questions_sha256: str = ""  # content of all questions
    answers: list[dict[str, Any]] = field(default_factory=list)  # to the first test question of each kind
    styles: dict[str, float] = field(default_factory=dict)  # share of test answers in the style of each teacher
    faults: dict[str, float] = field(default_factory=dict)  # share of test answers with the fault of each teacher
    benchmarks: dict[str, float] = field(default_factory=dict)  # score of each benchmark that the run has, 0 to 100
    teachers: dict[str, float] = field(default_factory=dict)  # accuracy of each, in the first arm of a seed
    curves: dict[str, list[float]] = field(default_factory=dict, repr=False)  # by column, one value a step; kept as CSV

    @property
    def name(self) -> str:
        """Its files, without suffix, below the study's folder."""
        rate = "" if self.purpose == COMPARED else "".join(f"-{value:g}" for value in self.swept.values())
        return f"{self.purpose}/{self.arm}{rate}-w{self.world}-s{self.seed}"


def find_departures(run: Run, done: RecordedExperiment, planned: str) -> list[str]:
    """Files in which the experiment is not the run: code that differs from the snapshot `planned`, or other
    parameters.
    """
    with tempfile.TemporaryDirectory() as folder:
        values = read_yaml(done.fetch("params.yaml", Path(folder) / "params.yaml"))
    same = _select_deciding(values) == _select_deciding(run.values)
    return [*done.list_changes(planned, *run.made_from), *([] if same else ["params.yaml"])]


def _select_deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    return validate_params(values).model_dump(exclude={"runtime", "budget", "report"})


def make_record(
    run: Run, done: RecordedExperiment, seconds: Mapping[str, float], core_seconds: Mapping[str, float]
) -> StudyRecord:
    """The record of a run from its experiment. Raises FileNotFoundError when something that it should have made isn't
    there.
    """
    params = validate_params(run.values, run.name)
    lock = done.read_text("dvc.lock")
    loop: dict[str, Any] = {}
    curves: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        found = _read_scores(run, done, params, Path(folder)) if run.evaluation is not None else {}
        if "ril" in run.stages:
            loop = _read_loop(run, done, params, Path(folder))
            curves = _read_run_curves(run, done, params, Path(folder))
            loop["tokens"] = count_arm_tokens(curves, params)
    return StudyRecord(
        study=run.study,
        purpose=run.purpose,
        arm=run.arm,
        title=run.title,
        world=run.seeds.world,
        seed=run.seeds.seed,
        swept=dict(run.swept),
        key=run.key,
        params_sha256=hash_json(
            {key: value for key, value in run.values.items() if key not in ("runtime", "budget", "report")}
        ),
        overrides=list(run.overrides),
        experiment=run.name,
        revision=done.revision,
        commit=done.baseline,
        committed=not done.list_changes(done.baseline, "stages", "flows", "dvc.yaml"),
        code={stage: digest[:_DIGITS] for stage, digest in run.code.items()},
        lock_sha256=hashlib.sha256(lock.encode()).hexdigest(),
        seconds={stage: round(value, 1) for stage, value in seconds.items()},
        core_seconds={stage: round(value, 1) for stage, value in core_seconds.items()},
        stages={stage: key[:_DIGITS] for stage, key in run.stages.items()},
        weights=_read_weights(parse_locked_stages(lock.encode()), run.stages),
        budget=extract_budget(params),
        curves=curves,
        **loop,
        **found,
    )


def _read_weights(locked: Mapping[str, Any], stages: Iterable[str]) -> dict[str, str]:
    """The hash of the outs with the weights of the stages that all arms of a data set share, by stage."""
    return {
        stage: hash_json([out["md5"] for out in locked[stage]["outs"] if out["path"].startswith("data/")])[:_DIGITS]
        for stage in stages
        if stage.split("@")[0] in _WEIGHTS
    }


def _read_loop(run: Run, done: RecordedExperiment, params: Params, folder: Path) -> dict[str, Any]:
    """Validation scores, shares of faults in the kept validation answers, and the discriminator before the loop."""
    scores = read_curves(done.read_text("reports/ril/validation.csv"))
    measured = scores[names.VALIDATION]
    faults: dict[str, list[float]] = {}
    if params.ril.validation_samples:
        place = done.fetch("data/ril/validation", folder / "validation")
        faults = compute_fault_curves(read_shards(place).to_pylist(), params, run.seeds.faults)
    return {
        "validation": {"start": measured[0], "end": measured[-1], LAST_TWO: sum(measured[-2:]) / len(measured[-2:])},
        "validations": {names.STEP: scores[names.STEP], names.VALIDATION: measured, **faults},
        "discriminator": _flatten_numbers(json.loads(done.read_text("reports/discriminator/metrics.json"))),
    }


def _read_scores(run: Run, done: RecordedExperiment, params: Params, folder: Path) -> dict[str, Any]:
    scores = json.loads(done.read_text(f"reports/evaluate/{run.evaluation}/metrics.json"))
    rows = read_shards(done.fetch(f"data/evaluate/{run.evaluation}", folder / "evaluate")).to_pylist()
    rows.sort(key=lambda row: row["question_id"])
    forms = find_teacher_forms(run, done, params, folder)
    others = [target.removeprefix("evaluate@") for target in run.targets if target.startswith("evaluate@")]
    return {
        "scores": {key: value for key, value in scores.items() if not key.startswith("benchmark")},
        "benchmarks": {name: one["score"] for name, one in scores.get("benchmarks", {}).items() if one["complete"]},
        "right": mark_answers(rows),
        "questions_sha256": json.loads(done.read_text("reports/questions/metrics.json"))["content_sha256"],
        "answers": pick_examples(rows),
        "styles": compute_style_shares([row["response"] for row in rows], forms),
        "faults": compute_fault_shares(
            rows,
            find_fault_answers(params, params.evaluate.split, [row["question_id"] for row in rows], run.seeds.faults),
        ),
        "teachers": {
            name: json.loads(done.read_text(f"reports/evaluate/{name}/metrics.json"))["accuracy"]
            for name in others
            if name != run.evaluation
        },
    }


def mark_answers(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns 1, 0 or, without a verdict, NO_VERDICT for each row of an evaluation."""
    return "".join(NO_VERDICT if row["correct"] is None else str(int(row["correct"])) for row in rows)


def pick_examples(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Kind, reference, response and correctness of the first row of each kind: examples that nobody picked."""
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(row["kind"], row)
    return [{key: row[key] for key in ("kind", "reference", "response", "correct")} for _, row in sorted(first.items())]


def _read_run_curves(run: Run, done: RecordedExperiment, params: Params, folder: Path) -> dict[str, list[float]]:
    curves = read_curves(done.read_text("reports/ril/history.csv"))
    kept = {column: values for column, values in curves.items() if _is_kept(column)}
    if run.evaluation is None or not kept.get(names.STEP):
        return kept
    forms = find_teacher_forms(run, done, params, folder)
    said: dict[int, list[str]] = defaultdict(list)
    for row in read_shards(done.fetch("data/ril/samples", folder / "samples")).to_pylist():
        if row["source"] == STUDENT:
            said[row["step"]].append(row["response"])
    by_step = [compute_style_shares(said.get(int(step), []), forms) for step in kept[names.STEP]]
    return kept | {
        f"styles/{name}": [shares.get(name, math.nan) for shares in by_step]
        for name in ([*forms, "any"] if forms else [])
    }


def _is_kept(column: str) -> bool:
    return any(column == name if "{}" not in name else source_of(column, name) for name in _CURVES)


def mask_numbers(text: str) -> str:
    """`text` with every number as 0: how something is written, whatever it says. Fits short answers that follow a
    pattern.
    """
    return _NUMBER.sub("0", text)


def find_teacher_forms(run: Run, done: RecordedExperiment, params: Params, folder: Path) -> dict[str, frozenset[str]]:
    """The forms in which each teacher that the run asked writes at least 5 % of its stored answers."""
    found = {}
    for name in [one for one in params.teachers if f"teacher@{one}" in run.stages]:
        place = folder / f"teacher-{name}"
        if not place.exists():
            done.fetch(f"data/teacher/{name}", place)
        texts = read_shards(place)["response"].to_pylist()
        counted = Counter(mask_numbers(text) for text in texts)
        found[name] = frozenset(one for one, count in counted.items() if count >= _OWN_FORM * len(texts))
    return found


def compute_style_shares(texts: Sequence[str], forms: Mapping[str, frozenset[str]]) -> dict[str, float]:
    """Share of the texts in the style of each teacher, and of `any`; nothing for no texts."""
    if not texts or not forms:
        return {}
    written = [mask_numbers(text) for text in texts]
    every = frozenset().union(*forms.values())
    return {name: sum(one in own for one in written) / len(written) for name, own in {**forms, "any": every}.items()}


def read_curves(text: str) -> dict[str, list[float]]:
    """Columns of a CSV; an empty cell is nan."""
    columns: dict[str, list[float]] = defaultdict(list)
    for row in csv.DictReader(io.StringIO(text)):
        for key, value in row.items():
            columns[key].append(float(value) if value else math.nan)
    return dict(columns)


def write_record(folder: Path, record: StudyRecord) -> None:
    """Writes the record into the study's folder, the curves first: a JSON file says that both are there."""
    if record.curves:
        heads = list(record.curves)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(heads)
        for row in zip(*record.curves.values(), strict=True):
            writer.writerow([f"{value:.4g}" if math.isfinite(value) else "" for value in row])
        write_text(folder / f"{record.name}.csv", buffer.getvalue())
    optional = (
        "benchmarks",
        "faults",
        "core_seconds",
        "tokens",
        "validations",
        "stages",
        "weights",
    )  # earlier records have none
    absent = {"curves", *(name for name in optional if not getattr(record, name))}
    values = {key: value for key, value in asdict(record).items() if key not in absent}
    write_text(folder / f"{record.name}.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_record(path: Path) -> StudyRecord:
    """The record in a JSON file, with the curves beside it. Raises TypeError for one of another version."""
    curves = path.with_suffix(".csv")
    return StudyRecord(
        **read_json(path), curves=read_curves(curves.read_text(encoding="utf-8")) if curves.exists() else {}
    )


def read_records(folder: Path) -> list[StudyRecord]:
    """All records of a study, in the order of their names."""
    return [read_record(path) for path in sorted(folder.glob("*/*.json"))]


def _flatten_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, float)}
