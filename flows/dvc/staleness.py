"""Why a stage is out of date: which parameters, inputs and functions are not as dvc.lock has them.

DVC is asked through its library, in this process: what it has hashed before it does not read again. What changed in
code is read from the stage's record (flows/code_record.py), not from DVC, which knows bytes only.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.closure import ComputedImport
from flows.code_record import BadRecord, WatchedCode, is_code, keep_copy, read_code_record
from flows.digest import CodeChange, compare_code
from flows.dvc.failed import DvcFailed
from flows.dvc.private_state import use_private_state
from flows.lockfile import read_locked_stages
from stages.config.table import STAGES
from stages.config.yaml import compare_values
from stages.job.failure import Failure
from stages.job.files import read_json
from stages.vlm.checkpoint import open_verified
from stages.vlm.identity import CARD

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

LOCK_SECONDS = 60.0  # for another dvc to let go of the project, as it does while a stage runs
NEVER_RUN, STALE, FOLLOWS, UP_TO_DATE = "never run", "stale", "follows", "up to date"
_ABSENT = "(absent)"
_UNKNOWN = "no record of the code before, so what changed in it is not known"


@dataclass(frozen=True)
class Parameter:
    """A parameter with another value."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.now}"


@dataclass(frozen=True)
class Input:
    """A file or folder that a stage reads and that is not as it was."""

    path: str
    what: str  # modified, deleted or new
    maker: str | None  # the stage that makes it; None for users' files

    def __str__(self) -> str:
        word = {"modified": "changed", "deleted": "missing", "new": "not read before"}.get(self.what, self.what)
        return f"{self.path} {word}" + (f"; made by {self.maker}" if self.maker else "")


@dataclass(frozen=True)
class StageStatus:
    """One stage, compared with its entry in dvc.lock."""

    name: str
    state: str = UP_TO_DATE
    parameters: Sequence[Parameter] = ()
    inputs: Sequence[Input] = ()
    outs: Mapping[str, str] = field(default_factory=dict)  # what became of each result that is not as it was
    command: bool = False  # whether dvc.yaml starts it in another way
    respelled: bool = False  # whether its command only has the item no longer, which DVC says to it in another way
    files: Sequence[str] = ()  # code that DVC finds changed
    code: Sequence[CodeChange] | None = ()  # what changed in it; None when there is no record of the code that made it
    follows: Sequence[str] = ()  # the stages before it that are out of date, when nothing of its own changed

    @property
    def words_only(self) -> bool:
        """Whether comments, docstrings, help texts or formatting are all that changed."""
        return self.state == STALE and self.code_only and self.code is not None and not self.code

    @property
    def changed(self) -> list[str]:
        """What changed in its code, as far as that is known."""
        if self.code is None:
            return [f"{path} changed ({_UNKNOWN})" for path in self.files]
        return [str(change) for change in self.code]

    @property
    def code_only(self) -> bool:
        """Whether nothing but code changed, or how the command is written."""
        return bool(self.files or self.respelled) and not (self.parameters or self.inputs or self.outs or self.command)


@contextlib.contextmanager
def open_project(root: Path) -> Iterator["Repo"]:
    """DVC's view of the project, which no other dvc changes during the block.

    Raises DvcFailed when there is none, when dvc.yaml or params.yaml can't be used, or when another dvc holds it.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo

    if not (root / ".dvc").is_dir():
        raise DvcFailed("DVC is not set up in this folder; run: git init && dvc init")
    use_private_state(root, os.environ)
    end = time.monotonic() + LOCK_SECONDS
    try:
        with contextlib.ExitStack() as stack:
            repo = stack.enter_context(Repo(str(root)))
            while True:
                try:
                    stack.enter_context(lock_repo(repo))
                    break
                except LockError:
                    if time.monotonic() > end:
                        raise DvcFailed(f"another dvc has held this project for {LOCK_SECONDS:.0f} s") from None
            yield repo
    except DvcException as error:
        raise DvcFailed(" ".join(str(error).split())) from error


def compare_stages(root: Path, store: Path, *, code: bool = True) -> dict[str, StageStatus]:
    """Every stage and item by its name, in an order in which they can run. Raises DvcFailed.

    `store` is the folder that holds copies of records. Without `code` it is not looked up what changed in code.
    """
    with open_project(root) as repo:
        return compare_stages_in(repo, root, store, code=code)


def compare_stages_in(repo: "Repo", root: Path, store: Path, *, code: bool = True) -> dict[str, StageStatus]:
    """The same, in a project that is open already."""
    stages = _in_order(repo)  # before dvc.lock is read here, so that dvc says what is wrong with it
    lock = read_locked_stages(root)
    found: dict[str, StageStatus] = {}
    for stage in stages:
        own = _read_status(stage, lock.get(stage.name), root, store, code)
        before = [found[one.name] for one in repo.index.graph.successors(stage) if one.name in found]
        causes = [name for one in before for name in ([one.name] if one.state in (STALE, NEVER_RUN) else one.follows)]
        if own.state == UP_TO_DATE and causes:
            own = StageStatus(own.name, FOLLOWS, follows=list(dict.fromkeys(causes)))
        found[own.name] = own
    return found


def select_stages(found: Mapping[str, StageStatus], targets: Sequence[str]) -> list[StageStatus]:
    """The stages that `targets` name; `teacher` stands for all of its items, no target for everything.

    Raises DvcFailed for a name that is no stage.
    """
    for target in targets:
        if not any(target in (name, name.split("@")[0]) for name in found):
            raise DvcFailed(f"no stage {target!r}; stages: {', '.join(found)}")
    return [one for name, one in found.items() if not targets or {name, name.split("@")[0]} & set(targets)]


def _in_order(repo: "Repo") -> list["PipelineStage"]:
    """In the order of the table, in which every stage comes after those that make its inputs."""
    places = {name: place for place, name in enumerate(STAGES)}
    return sorted(repo.index.stages, key=lambda stage: places.get(stage.name.split("@")[0], len(places)))


def _read_status(
    stage: "PipelineStage", entry: Mapping[str, Any] | None, root: Path, store: Path, code: bool
) -> StageStatus:
    if entry is None:
        return StageStatus(stage.name, NEVER_RUN)
    parameters, inputs, files, watched = list[Parameter](), list[Input](), list[str](), list[str]()
    for dep in stage.deps:
        path = dep.def_path
        if hasattr(dep, "read_params"):
            values = compare_values(dep.hash_info.value or {}, dep.read_params(), _ABSENT)
            parameters += [Parameter(*one) for one in values]
            continue
        watched += [path] if is_code(path) else []
        for what in dep.status().values():
            if is_code(path):
                files.append(path)
            else:
                inputs.append(Input(path, what, _find_maker(stage.repo, path)))
    outs = {out.def_path: what for out in stage.outs for what in out.status().values()}
    inputs += compare_pinned(stage.name, root, store) if not outs else []
    respelled = stage.cmd_changed and entry.get("cmd") == f"{stage.cmd} {stage.name.partition('@')[2]}"
    stale = bool(parameters or inputs or outs or files or stage.cmd_changed)
    return StageStatus(
        stage.name,
        STALE if stale else UP_TO_DATE,
        parameters,
        inputs,
        outs,
        stage.cmd_changed and not respelled,
        respelled,
        files,
        _find_code_changes(stage.name, entry, watched, root, store, changed=bool(files)) if code else None,
    )


def compare_pinned(name: str, root: Path, store: Path) -> list[Input]:
    """The folder of a pinned model, when its files are not those of the card; DVC is not told of that folder."""
    card = root.joinpath("data", *name.split("@"))
    if not name.startswith("model@") or not (card / CARD).is_file() or "path" not in read_json(card / CARD):
        return []
    try:
        open_verified(card, store)
    except FileNotFoundError:
        return [Input(read_json(card / CARD)["path"], "deleted", None)]
    except Failure:
        return [Input(read_json(card / CARD)["path"], "modified", None)]
    return []


def _find_code_changes(
    name: str, entry: Mapping[str, Any], paths: Sequence[str], root: Path, store: Path, changed: bool
) -> list[CodeChange] | None:
    """What changed in the code since the result was made; None when nothing tells.

    A result that was recorded without a run of its stage here (`dvc commit`) has no record. While its code is as DVC
    has it, one is kept in the store.
    """
    locked = {dep["path"]: dep["md5"] for dep in entry.get("deps", ()) if is_code(dep["path"])}
    try:
        record = read_code_record(reports_folder(root, name), store, locked)
        if record is not None and not changed:
            return []
        now = WatchedCode(root, name.split("@")[0], paths)
    except SyntaxError as error:
        raise DvcFailed(f"{error.filename}, line {error.lineno}: {error.msg}; Python can't read it") from error
    except (BadRecord, ComputedImport) as error:
        raise DvcFailed(str(error)) from error
    if record is not None:
        return compare_code(record.code, now.code)
    if changed:
        return None
    keep_copy(now.record(), store)
    return []


def reports_folder(root: Path, name: str) -> Path:
    """The folder in reports/ of a stage or item."""
    return root.joinpath("reports", *name.split("@"))


def _find_maker(repo: "Repo", path: str) -> str | None:
    """The stage with an out at `path`, above or below it; for several items of one stage its name."""
    here = Path(path)
    outs = [(Path(out.def_path), out.stage.name) for out in repo.index.outs]
    names = {maker for out, maker in outs if here.is_relative_to(out) or out.is_relative_to(here)}
    return names.pop() if len(names) == 1 else next((name.split("@")[0] for name in sorted(names)), None)
