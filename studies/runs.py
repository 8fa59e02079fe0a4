"""The runs of a study: one arm with one pair of seeds is one DVC experiment, known by a hash of all that decides its
result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from flows.closure import ROOT, find_reached_files
from flows.code_record import WatchedCode
from flows.fingerprint import Fingerprint
from flows.jobs import list_makers, open_job
from flows.profile import find_differences, format_overrides
from flows.work import list_code_inputs, list_data_inputs
from stages.config.params import Params, validate_params
from stages.config.yaml import read_yaml
from stages.job.hashes import hash_json
from stages.job.job import Job
from studies.study import Arm, Seeds, Study, make_values, set_value

TUNING, COMPARED = "tuning", "compared"
_SHOWN = 8  # digits of a key in the name of an experiment


@dataclass(frozen=True)
class Run:
    """One DVC experiment."""

    study: str
    purpose: str  # TUNING or COMPARED
    arm: str
    title: str
    seeds: Seeds
    evaluation: str | None  # entry of `evaluations`; None while tuning: the test split stays unread
    swept: Mapping[str, float]  # the swept parameter with its value; empty for arms without sweep
    values: Mapping[str, Any] = field(repr=False)  # params.yaml as this run has it
    overrides: tuple[str, ...] = field(repr=False)  # arguments of `dvc exp run -S`
    targets: tuple[str, ...]
    stages: Mapping[str, str] = field(repr=False)  # every stage on the way with the hash of all that decides its out
    key: str  # that hash of the last stage: equal key, equal result
    code: Mapping[str, str] = field(
        repr=False
    )  # hash of the code of every stage on the way, and of users' data that it reads

    @property
    def name(self) -> str:
        """Name of the DVC experiment."""
        rate = "".join(f"-{value:g}" for value in self.swept.values()) if self.purpose == TUNING else ""
        return f"{self.study}-{self.arm}{rate}-w{self.seeds.world}-s{self.seeds.seed}-{self.key[:_SHOWN]}".replace(
            ".", "_"
        )

    @property
    def made_from(self) -> list[str]:
        """The files and folders with its code."""
        names = dict.fromkeys(target.split("@")[0] for target in self.stages)
        return sorted({str(path) for name in names for path in find_reached_files(ROOT, f"stages.{name}")})

    @property
    def label(self) -> str:
        """What a person calls it."""
        return f"{self.arm} ({self.seeds}{''.join(f', {key} {value:g}' for key, value in self.swept.items())})"

    @property
    def file(self) -> str:
        """Where its record is kept in the study's folder, without suffix."""
        rate = "".join(f"-{value:g}" for value in self.swept.values()) if self.purpose == TUNING else ""
        return f"{self.purpose}/{self.arm}{rate}-w{self.seeds.world}-s{self.seeds.seed}"


class Hashes(NamedTuple):
    """What a stage is known by."""

    key: str  # of all that decides its out: parameters, code, the keys before it
    code: str  # of its own code


class Planner:
    """Makes the runs of one study in one checkout; hashes code once."""

    def __init__(self, root: Path, study: Study, name: str, profile: str | None = None) -> None:
        self._root, self._study, self._profile = root, study, profile
        self.study = name
        self.name = name if profile is None else f"{name}-{profile}"
        self._base = read_yaml(root / "params.yaml")
        self._code: dict[str, str] = {}

    def plan_tuning(self, arms: Sequence[str], tuning: Sequence[Seeds]) -> list[Run]:
        """The sweep at seeds `tuning` of those `arms` that have one of their own; none where there is one value."""
        runs: list[Run] = []
        for key, values in self._study.sweep.items():
            if len(values) > 1:
                for seeds in tuning:
                    for name in filter(self._study.is_tuned, arms):
                        runs += [self._make_run(TUNING, name, seeds, {key: value}) for value in values]
        return runs

    def plan_comparison(
        self, arms: Sequence[str], seeds: Sequence[Seeds], chosen: Mapping[str, Mapping[str, float]]
    ) -> list[Run]:
        """Every arm at every seed; `chosen` holds the swept value of each arm that has one."""
        runs: list[Run] = []
        for one in seeds:
            for name in arms:
                first = not runs or runs[-1].seeds != one
                run = self._make_run(COMPARED, name, one, chosen.get(name, {}), self._study.shared if first else ())
                runs.append(run)
        return runs

    def _make_run(
        self, purpose: str, name: str, seeds: Seeds, swept: Mapping[str, float], further: Sequence[str] = ()
    ) -> Run:
        arm: Arm = self._study.arms[name]
        values = make_values(self._root, self._study, arm, seeds, self._profile)
        for key, value in swept.items():
            values = set_value(values, key, value)
        params = validate_params(values, f"arm {name}")
        evaluation = arm.evaluation if purpose == COMPARED else None
        own = "ril" if evaluation is None else f"evaluate@{evaluation}"
        targets = tuple(dict.fromkeys([*further, *(self._study.beside if purpose == COMPARED else ()), own]))
        found = self.list_stages(params, targets)
        return Run(
            study=self.name,
            purpose=purpose,
            arm=name,
            title=arm.title,
            seeds=seeds,
            evaluation=evaluation,
            swept=dict(swept),
            values=values,
            overrides=tuple(format_overrides(find_differences(self._base, values))),
            targets=targets,
            stages={target: one.key for target, one in found.items()},
            key=found[own].key,
            code={target: one.code for target, one in found.items()},
        )

    def list_stages(self, params: Params, targets: Sequence[str]) -> dict[str, Hashes]:
        """Every stage that `targets` need, in an order in which they can run."""
        found: dict[str, Hashes] = {}

        def add(target: str) -> str:
            if target not in found:
                stage, _, item = target.partition("@")
                job = open_job(stage, item or None, self._root, params)
                inputs = [str(path.relative_to(self._root)) for path in job.inputs if path.is_relative_to(self._root)]
                before = [one for path in inputs if path.startswith("data/") for one in list_makers(job, path)]
                code = self._hash_code(job)
                own = hash_json([target, job.values, code, sorted(add(one) for one in before)])
                found[target] = Hashes(own, code)
            return found[target].key

        for target in targets:
            add(target)
        return found

    def _hash_code(self, job: Job) -> str:
        """Hash of what the stage's code says and of inputs that no stage makes (users' data)."""
        given = [
            path for path in list_data_inputs(job) if not path.is_relative_to(self._root / "data") and path.exists()
        ]
        name = f"{job.stage} {given} {list_code_inputs(job)}"
        if name not in self._code:
            code = WatchedCode(self._root, job.stage, list_code_inputs(job)).digest
            self._code[name] = hash_json([code, Fingerprint(self._root, given, {}).digest])
        return self._code[name]
