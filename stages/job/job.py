"""One run of one stage: its parameters, its inputs and outputs, its reports."""

import contextlib
import csv
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from stages.config.block import Block
from stages.config.stage import Stage
from stages.job.files import replacing, replacing_folder, write_json
from stages.job.progress import Progress
from stages.job.repository import Repository
from stages.job.seeds import derive_seed
from stages.job.spending import Spending

_B = TypeVar("_B", bound=Block)


class MissingInput(FileNotFoundError):
    """An input that another stage produces and that does not exist yet; the message names that stage."""


@dataclass(frozen=True)
class Job:
    """The context of a stage. Access to anything that `stages/config/table.py` does not list for it is an error.

    `flows.jobs.open_job` creates it. This module imports neither the table nor all of `params.yaml`, so that a stage
    depends only on the blocks that it reads.
    """

    definition: Stage  # the stage's row of the table
    item: str | None
    root: Path
    project: Path  # the project that `root` is a copy of; `root` itself outside of experiments
    store: Path  # folder of state that outlives outs: stored answers and training state
    given: Mapping[str, Any] = field(repr=False)  # the declared parameters by key: blocks, plural blocks, single values
    paths: tuple[str, ...] = field(repr=False)  # the declared inputs, relative to `root`
    runtime: Block = field(repr=False)  # available through `block(Runtime)`
    tracking: Block = field(repr=False)  # available through `block(Tracking)`; no stage depends on it
    runs: tuple[str, ...] = field(repr=False)  # all runs of the pipeline in order, by name
    progress: Progress = field(repr=False)
    spending: Spending = field(repr=False)  # what it has spent of its budget
    experiment: str = ""  # name of the running experiment of DVC; "" for a run in the workspace
    fingerprint: str = ""  # hash of parameters and inputs
    code: str = ""  # hash of the stage's code
    run_folder: Path | None = None  # where training keeps its state until this run is done; None: it keeps none
    repository: Callable[[], Repository] = field(default=Repository, repr=False)  # reads the state of Git and DVC
    _seconds: dict[str, float] = field(default_factory=dict, repr=False)
    _measured: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self.definition.name

    @property
    def name(self) -> str:
        """`ril`, or `teacher@internvl3` for a stage with one run per item."""
        return f"{self.stage}@{self.item}" if self.item else self.stage

    # --- inputs -----------------------------------------------------------------------------------------------------

    def block(self, kind: type[_B]) -> _B:
        """Returns the block of parameters of class `kind`: the only one, or that of this run's item.

        Raises PermissionError if the stage does not declare it: DVC would not notice its changes.
        """
        for block in (*self.given.values(), self.runtime, self.tracking):
            if type(block) is kind:
                return block
        raise self._make_undeclared_error(f"block {kind.__name__}")

    def blocks(self, kind: type[_B]) -> Mapping[str, _B]:
        """Returns all blocks of class `kind` by id, for a stage that declares the plural block as a whole.

        Raises PermissionError if the stage does not declare it.
        """
        for block in self.given.values():
            if isinstance(block, Mapping) and all(type(entry) is kind for entry in block.values()):
                return block
        raise self._make_undeclared_error(f"all blocks {kind.__name__}")

    def value(self, key: str) -> Any:
        """Returns a declared single-valued parameter, such as "ril.objective".

        Raises PermissionError if the stage does not declare it.
        """
        if key not in self.given:
            raise self._make_undeclared_error(f"parameter {key}")
        return self.given[key]

    def _make_undeclared_error(self, what: str) -> PermissionError:
        return PermissionError(
            f"stage {self.stage} reads {what}, which it does not declare; add it to stages/config/table.py and dvc.yaml"
        )

    def seed(self, *parts: int | str) -> int:
        """Returns a seed derived from (params.seed, stage and item, parts)."""
        return derive_seed(self.value("seed"), self.name, *parts)

    @property
    def inputs(self) -> list[Path]:
        """Absolute paths of the declared inputs."""
        return [self.root / path for path in self.paths]

    @property
    def values(self) -> dict[str, Any]:
        """The declared parameters as plain values, for the fingerprint and for the copy with the results."""
        return {key: _to_plain(value) for key, value in self.given.items()}

    def input(self, path: str) -> Path:
        """Returns the path of the declared input `path` (such as "data/questions"), which exists.

        Raises MissingInput with the stage that produces it, PermissionError if it is not declared.
        """
        full = self.root / path
        if full not in self.inputs:
            raise PermissionError(
                f"stage {self.stage} reads {path}, which it does not declare in stages/config/table.py"
            )
        if not full.exists():
            raise self.explain_missing(path)
        return full

    def explain_missing(self, path: str) -> MissingInput:
        """Returns the error for a missing input: it names the stage that produces `path`, or says that none does."""
        if Path(path).parts[0] in ("data", "reports"):
            return MissingInput(f"{path} is missing; make it with: dvc repro {self.find_maker(path)}")
        return MissingInput(f"{path} is missing; no stage makes it: put it there, or correct the path in params.yaml")

    def find_maker(self, path: str) -> str:
        """Returns the DVC target that produces `path`: "teacher@x" for "data/teacher/x", "ril" for "reports/ril"."""
        _, stage, *rest = Path(path).parts
        return f"{stage}@{rest[0]}" if rest and stage not in self.runs else stage

    # --- outputs ----------------------------------------------------------------------------------------------------

    @property
    def out(self) -> Path:
        """The stage's folder in data/."""
        return self.root / "data" / self.stage / (self.item or "")

    @property
    def reports(self) -> Path:
        """The stage's folder in reports/."""
        return self.root / "reports" / self.stage / (self.item or "")

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Yields an empty folder that becomes `out` when the block exits without an error."""
        with replacing_folder(self.out) as folder:
            yield folder

    def remove_unfinished(self) -> None:
        """Removes what killed runs of this stage left beside `out` and in `reports`; DVC starts one run at a time.

        In data/ it would stay for good, gigabytes of a model; `report` depends on the folders in reports/.
        """
        for folder in self.out.parent.glob(f".{self.out.name}.*.partial"):
            shutil.rmtree(folder)
        for file in self.reports.glob(".*.partial"):
            file.unlink()

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Writes reports/<stage>/metrics.json (without wall times) and the parameters next to it."""
        write_json(self.reports / "metrics.json", metrics)
        write_json(self.reports / "params.json", self.values)

    def write_history(self, rows: Sequence[Mapping[str, Any]], name: str = "history.csv") -> None:
        """Writes reports/<stage>/<name>, one row per step, for `dvc plots`."""
        with replacing(self.reports / name) as temporary, temporary.open("w", newline="") as handle:
            heads = list(dict.fromkeys(key for row in rows for key in row))
            writer = csv.DictWriter(handle, heads, lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)

    @contextlib.contextmanager
    def measure_time(self, part: str) -> Iterator[None]:
        """Adds the wall time of the block to `part` of timing.json, which DVC neither tracks nor hashes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - start

    def add_measurements(self, **values: Any) -> None:
        """Adds values that differ between runs (rates, store hits) to timing.json; metrics.json must not hold them."""
        self._measured.update(values)

    def add_cost(self, title: str, **values: float) -> None:
        """Adds the cost of answers (counts, seconds) to `title` in timing.json; a stage may use several models."""
        found = self._measured.setdefault("paid", {}).setdefault(title, {})
        for key, value in values.items():
            found[key] = found.get(key, 0) + value

    def write_timing(self, total: float) -> None:
        """Writes reports/<stage>/timing.json: total seconds, seconds by part, and the added measurements."""
        parts = {part: round(seconds, 3) for part, seconds in self._seconds.items()}
        write_json(self.reports / "timing.json", {"seconds": round(total, 3), "parts": parts, **self._measured})


def _to_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _to_plain(entry) for name, entry in value.items()}
    return value.model_dump(mode="json") if isinstance(value, Block) else value
