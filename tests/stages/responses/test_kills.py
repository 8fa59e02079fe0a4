"""The teacher stage killed at any moment, and beside itself; the long form is tests/performance/store_kills.py."""

import importlib.util
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages.responses.compact import compact
from stages.responses.segments import list_segments

KILLS = int(os.environ.get("RIL_KILLS", "4"))


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModuleType, Any]]:
    """The long form's module, and its trials with a project."""
    file = Path(__file__).parents[2] / "performance/store_kills.py"
    spec = importlib.util.spec_from_file_location("store_kills", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["store_kills"] = module  # the processes of its runs find its functions by this name
    spec.loader.exec_module(module)
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(file.parent), str(Path(__file__).parents[3]), path])
    sys.path.insert(0, str(file.parent))
    yield module, module.Trials(tmp_path_factory.mktemp("kills"), "fake")
    sys.path.remove(str(file.parent))
    os.environ["PYTHONPATH"] = path


@pytest.mark.slow
def test_a_killed_run_ends_like_an_undisturbed_one(harness: tuple[ModuleType, Any]) -> None:
    module, trials = harness
    expected = trials.undisturbed()
    choose = random.Random(1)
    for number in range(KILLS):
        phase, (store, log) = trials.killed((number + choose.random()) / KILLS, choose)
        trials.finish(trials.process(store, log))
        assert not module.found_wrong(trials.project, store, log, expected), phase


@pytest.mark.slow
def test_two_runs_at_once_end_alike_though_their_engines_differ(
    harness: tuple[ModuleType, Any], tmp_path: Path
) -> None:
    """Each writes other answers to the same questions; whichever was first is what both serve, then and later."""
    module, trials = harness
    store, log = trials.fresh()
    projects = [trials.project, tmp_path / "second"]
    shutil.copytree(trials.project, projects[1])
    runs = [trials.process(store, log, project, salt) for project, salt in zip(projects, ("", "other"), strict=True)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(module.LIMIT_SECONDS)
    assert [run.exitcode for run in runs] == [0, 0]
    outs = [(project / "data/teacher/internvl3/part-00000.parquet").read_bytes() for project in projects]
    assert outs[0] == outs[1]
    (folder,) = (store / "responses").iterdir()
    kept = [key for segment in list_segments(folder) for key in pq.read_table(segment.path)["key"].to_pylist()]
    assert set(kept) == set(module.written(log))
    compact(folder, pytest.fail)
    trials.finish(trials.process(store, log, projects[1]))
    assert (projects[1] / "data/teacher/internvl3/part-00000.parquet").read_bytes() == outs[0]
