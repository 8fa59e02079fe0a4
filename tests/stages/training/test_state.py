"""Training state: a stage that was killed or stopped anywhere ends with the same bytes as one that was not."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flows.work import Work
from stages.adversary.discriminator_model import DiscriminatorModel
from stages.config.lora import Lora
from stages.job.failure import Failure
from stages.job.hashes import hash_file
from stages.job.progress import Progress
from stages.job.stop import STOP
from stages.training.state import TrainingState, list_complete_checkpoints
from stages.vlm.checkpoint import open_checkpoint
from stages.vlm.reader import load_network, load_reader

WATCHED = Path(__file__).resolve().parents[2] / "faults" / "watched.py"


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(STOP, "code", None)


def results(folder: Path, stage: str) -> dict[str, str]:
    """sha256 of every file that the stage wrote, wall times left out."""
    files = [
        file
        for part in (f"data/{stage}", f"reports/{stage}")
        for file in sorted((folder / part).rglob("*"))
        if file.is_file()
    ]
    return {str(file.relative_to(folder)): hash_file(file) for file in files if file.name != "timing.json"}


def undisturbed(folder: Path, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the stage writes when nothing happens; made in a copy with a store of its own."""
    copy = tmp_path / f"undisturbed_{stage}"
    shutil.copytree(folder, copy)
    monkeypatch.chdir(copy)
    with monkeypatch.context() as patch:
        patch.setenv("RIL_STORE", str(tmp_path / "other store"))
        Work(stage, None, copy).run(Progress())
    monkeypatch.chdir(folder)
    return results(copy, stage)


ADAPTERS: dict[str, Any] = {
    "warm_start": {"lora": {"rank": 4}, "freeze_vision": True},
    "discriminator": {"lora": {"rank": 4}},
    "ril": {"lora": {"rank": 4}},
}


def train_adapters(project: Path) -> None:
    """All models of the project get adapters; so does its discriminator."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    for block, values in ADAPTERS.items():
        params[block] |= values
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    checkpoint = open_checkpoint(project / "data" / "warm_start")
    network = load_network(checkpoint, load_reader(checkpoint)).add_adapter("discriminator", Lora(rank=4), seed=1)
    DiscriminatorModel(network, seed=1).save(project / "data" / "discriminator")


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the request to stop arrive in the middle of that step."""
    original, seen = TrainingState._finish_step, [0]

    def after(self: TrainingState, done: int, count: int) -> None:
        seen[0] += 1
        if seen[0] == steps:
            STOP.code = 143
        original(self, done, count)

    monkeypatch.setattr(TrainingState, "_finish_step", after)


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("stage", ["warm_start", "discriminator"])
def test_stopped_and_resumed_is_undisturbed(
    stage: str,
    adapters: bool,
    training_project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if adapters:
        train_adapters(training_project)
    expected = undisturbed(training_project, stage, tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(SystemExit, match="143"):
            Work(stage, None, training_project).run(Progress())
    assert "stopped after step 5 of 12" in capfd.readouterr().err
    STOP.code = None
    folder = next((tmp_path / "store" / "runs" / stage).iterdir())
    assert [path.name for path in list_complete_checkpoints(folder)] == ["step_00000004", "step_00000005"], (
        "the last two are kept"
    )
    assert not (training_project / "data" / stage / "history.csv").exists()
    frozen = next((training_project / "data" / "warm_start").glob("*.safetensors")).stat().st_size
    state = sum(file.stat().st_size for file in (folder / "step_00000005").rglob("*") if file.is_file())
    assert (state < frozen) is adapters, "a checkpoint holds adapters without the model that they belong to"

    Work(stage, None, training_project).run(Progress())
    assert "resumes after step 5" in capfd.readouterr().err
    assert results(training_project, stage) == expected
    assert not folder.exists(), "training state goes when the work is done"


def test_other_parameters_do_not_resume(
    training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(training_project)
    stop_after(2, monkeypatch)
    with pytest.raises(SystemExit):
        Work("discriminator", None, training_project).run(Progress())
    STOP.code = None
    params = training_project / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: 3", 1))
    Work("discriminator", None, training_project).run(Progress())
    said = capfd.readouterr().err
    assert "goes on" not in said
    assert "training state of 1 runs with other parameters or inputs" in said


@pytest.mark.parametrize(("text", "warned"), [("# words\n", False), ("_CODE = 1\n", True)])
def test_changed_code_resumes_with_a_warning_and_changed_words_without(
    text: str,
    warned: bool,
    training_project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(training_project)
    with monkeypatch.context() as patch:
        stop_after(11, patch)
        with pytest.raises(SystemExit):
            Work("discriminator", None, training_project).run(Progress())
    STOP.code = None
    with (training_project / "stages" / "discriminator.py").open("a") as file:
        file.write(text)
    Work("discriminator", None, training_project).run(Progress())
    said = capfd.readouterr().err
    assert "resumes after step 11" in said
    assert ("its code has changed since" in said) == warned


def test_ril_fresh_forgets_and_a_half_written_checkpoint_does_not_count(
    training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(training_project)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(SystemExit):
            Work("discriminator", None, training_project).run(Progress())
    STOP.code = None
    folder = next((tmp_path / "store" / "runs" / "discriminator").iterdir())
    (folder / "step_00000003" / "DONE").unlink()  # as if the machine had lost it
    (folder / ".step_00000009.1.partial").mkdir()
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(SystemExit):
            Work("discriminator", None, training_project).run(Progress())
    assert "resumes after step 2" in capfd.readouterr().err
    assert not (folder / ".step_00000009.1.partial").exists()
    STOP.code = None
    monkeypatch.setenv("RIL_FRESH", "1")
    Work("discriminator", None, training_project).run(Progress())
    assert "goes on" not in capfd.readouterr().err


# --- files that somebody else wrote -----------------------------------------------------------------------------------


class Evil:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._file,)


@pytest.mark.parametrize("archive", [False, True])
def test_a_checkpoint_runs_no_code(
    archive: bool,
    training_project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(training_project)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(SystemExit):
            Work("discriminator", None, training_project).run(Progress())
    STOP.code = None
    (file,) = (tmp_path / "store").glob("runs/*/*/step_00000002/discriminator/*")
    proof = tmp_path / "code was run"
    torch.save(Evil(proof), file, _use_new_zipfile_serialization=archive)
    with pytest.raises(Failure, match=r"step_00000002/discriminator is no training state that this project wrote"):
        Work("discriminator", None, training_project).run(Progress())
    assert not proof.exists()
    torch.load(file.rename(tmp_path / "renamed.pt"), weights_only=False)  # by its name it would be safetensors
    assert proof.exists(), "the file was harmless, so this test shows nothing"


# --- SIGKILL ----------------------------------------------------------------------------------------------------------

KILLS = int(os.environ.get("RIL_KILLS", "2"))  # 20 for the long form: about an hour on two cores
PLANNED = {  # moments that chance seldom meets
    "warm_start": [("model", 3), ("loop", 2), ("resume", 1)],
    "discriminator": [("commit", 3), ("loop", 2), ("resume", 1), ("discriminator", 3)],
    "ril": [("discriminator", 1), ("sync", 2), ("record", 2), ("loop", 2), ("resume", 2), ("student", 2)],
}
STEPS = {"warm_start": 10 * KILLS, "discriminator": 10 * KILLS, "ril": 3 * KILLS}
SPREAD = {"warm_start": 0.7, "discriminator": 0.7, "ril": 3.0}  # seconds after the loop has begun


def killed(folder: Path, stage: str, moment: str, number: float) -> str:
    """Runs the stage until it is killed; returns where that was, or "finished" when it came to its end before."""
    process = subprocess.Popen(
        [sys.executable, str(WATCHED), moment, str(number), stage],
        cwd=folder,
        env={
            name: value for name, value in os.environ.items() if not name.startswith("MASTER_")
        },  # of this process's training
        stderr=subprocess.PIPE,
        text=True,
    )
    _, said = process.communicate(timeout=240)
    if process.returncode == 0:
        return "finished"
    assert process.returncode == -signal.SIGKILL, said
    main_thread = said.rsplit("(most recent call first):", 1)[-1]
    frames = re.findall(r"stages/(\S+\.py)\", line (\d+) in (\w+)", main_thread)
    return (
        " < ".join(f"{name} ({file}:{line})" for file, line, name in frames[:3])
        if moment == "after"
        else f"{moment} {number}"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "adapters"), [("warm_start", False), ("discriminator", False), ("ril", False), ("ril", True)]
)
def test_killed_and_resumed_is_undisturbed(
    stage: str,
    adapters: bool,
    training_project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., tuple[int, str, str]],
) -> None:
    """Every other kill is at a random moment, the others between the saves of two models, during weight sync and so
    on.
    """
    if adapters:
        train_adapters(training_project)
    params = yaml.safe_load((training_project / "params.yaml").read_text())
    params[stage]["steps"] = STEPS[stage]
    (training_project / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setenv("PYTHONPATH", str(training_project))
    choose = random.Random(f"{stage} {KILLS}")
    log = []
    for kill in range(KILLS):
        moment, number = (
            PLANNED[stage][kill // 2 % len(PLANNED[stage])]
            if kill % 2 == 0
            else ("after", choose.uniform(0, SPREAD[stage]))
        )
        log.append(killed(training_project, stage, moment, number))
    print(f"{stage} was killed in: ", *log, sep="\n  ")
    assert sum(where != "finished" for where in log) >= KILLS / 2
    store = str(tmp_path / "store")
    code, _, err = call(training_project, "flows.run", stage, RIL_STORE=store)
    assert code == 0, err
    resumed = results(training_project, stage)
    code, _, err = call(training_project, "flows.run", stage, RIL_STORE=str(tmp_path / "another"))
    assert code == 0, err
    assert results(training_project, stage) == resumed
    assert len(resumed) > 3


def test_records_are_plain_json(training_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(training_project)
    stop_after(1, monkeypatch)
    with pytest.raises(SystemExit):
        Work("warm_start", None, training_project).run(Progress())
    (file,) = (tmp_path / "store" / "runs" / "warm_start").glob("*/step_00000001/loop.json")
    loop = json.loads(file.read_text())
    assert (loop["step"], len(loop["records"]["history"])) == (1, 1)
