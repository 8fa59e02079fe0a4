"""A stage that reaches a cap, through the real commands: exit code, message, what is stored, what is paid again."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from dvc.repo import Repo

from flows.gpu_hours import count_gpu_hours
from stages.config.yaml import ParamsError, merge_params, read_yaml
from stages.job.spending import BUDGET_CODE, BudgetReached, Spending
from tests.faults.endpoint import Fake, listening

Call = Callable[..., tuple[int, str, str]]
TEACHER = "internvl3"
CAPPED = """
import time
from pathlib import Path
from flows.gpu_hours import count_gpu_hours
from flows.signals import end_well_on_signals
from stages.job.spending import Spending
from stages.job.stop import STOP
end_well_on_signals()
spending = Spending(Path("spent.jsonl"), "budget.ril", {"gpu_hours": 8 * 0.5 / 3600})
with count_gpu_hours(spending, 8, seconds=0.1):
    WORK
"""


@pytest.fixture
def fake() -> Iterator[Fake]:
    with listening() as state:
        yield state


@pytest.fixture
def project(make_project: Callable[..., Path], call: Call, fake: Fake) -> Path:
    """A project whose teacher is an endpoint, with all that this teacher reads: 20 questions, 8 answers each."""
    overlay = {
        "questions": {"splits": {"warm_start": 8, "imitation": 20, "validation": 2, "test": 4}},
        "selection": {"teacher": "qwen2_5_vl"},
        "runtime": {"engines": {TEACHER: {"kind": "openai", "base_url": fake.url, "concurrency": 4}}},
    }
    project = make_project(overlay)
    values = read_yaml(project / "params.yaml")
    values["models"][TEACHER] = {"family": "remote", "endpoint": {"provider": "somebody", "name": "big-1"}}
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    for name in ("student", "qwen2_5_vl"):
        (project / "data" / "model" / name).mkdir(parents=True)  # of stage `selection`, which keeps all and reads none
    with Repo.init(str(project), no_scm=True):
        pass
    for words in (["model", TEACHER], ["questions"], ["selection"]):
        code, _, err = call(project, "flows.run", *words)
        assert code == 0, err
    return project


def set_cap(project: Path, answers: int) -> None:
    path = project / "params.yaml"
    values = merge_params(read_yaml(path), {"budget": {f"teacher@{TEACHER}": {"answers": answers}}})
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def count_stored(project: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in (project / ".ril" / "responses").rglob("*.parquet"))


@pytest.mark.slow
def test_a_stage_stops_at_100_answers_and_goes_on_with_a_higher_cap(project: Path, call: Call, fake: Fake) -> None:
    set_cap(project, 100)
    words = ("flows.cli", "run", "--no-server", "--only", f"teacher@{TEACHER}")
    code, out, err = call(project, *words)
    assert code == BUDGET_CODE, out + err
    (line,) = (line for line in out.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: budget.teacher@{TEACHER}.answers is 100 and used up: spent so far 100 answers")
    assert f"60 answers are missing; all that came is stored: raise budget.teacher@{TEACHER}.answers and run" in line
    assert "Traceback" not in out + err
    assert count_stored(project) == 100 == sum(body["n"] for body in fake.bodies)
    assert not (project / "data" / "teacher" / TEACHER).exists(), "no result is claimed"
    code, _, err = call(project, "flows.run", "teacher", TEACHER)
    assert (code, sum(body["n"] for body in fake.bodies)) == (BUDGET_CODE, 100), err
    set_cap(project, 1000)
    code, out, err = call(project, *words)
    assert code == 0, out + err
    assert count_stored(project) == 160 == sum(body["n"] for body in fake.bodies), "paid for the rest only"
    set_cap(project, 7)
    code, out, _ = call(project, *words)
    assert (code, "up to date" in out) == (0, True), "a cap makes nothing stale"


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("time.sleep(60)", BUDGET_CODE),
        ("with STOP.awaiting():\n        while STOP.code is None: time.sleep(0.05)\n    print('saved')", 0),
    ],
)
def test_gpu_hours_end_a_stage_and_let_a_training_loop_save(root: Path, tmp_path: Path, work: str, code: int) -> None:
    begun = time.monotonic()
    script = CAPPED.replace("WORK", work)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == code, done.stderr
    assert ("saved" in done.stdout) == (code == 0)
    assert time.monotonic() - begun < 40
    again = Spending(tmp_path / "spent.jsonl", "budget.ril", {"gpu_hours": 8 * 0.5 / 3600})
    with (
        pytest.raises(BudgetReached, match=r"budget\.ril\.gpu_hours is 0\.001111 and used up"),
        count_gpu_hours(again, 8),
    ):
        pytest.fail("it started although nothing is left")
    assert again.spent["gpu_hours"] < 8 * 5 / 3600


def test_a_cap_of_no_stage_is_a_mistake(root: Path) -> None:
    from stages.config.params import validate_params

    values = read_yaml(root / "params.yaml")
    for name in ("teachers", "teacher@nobody", "ril@student"):
        with pytest.raises(ParamsError, match=f"budget.{name} is no stage and no run"):
            validate_params({**values, "budget": {name: {"answers": 1}}})
    for name in ("teacher", "teacher@internvl3", "ril", "evaluate@ril"):
        validate_params({**values, "budget": {name: {"gpu_hours": 1}}})
