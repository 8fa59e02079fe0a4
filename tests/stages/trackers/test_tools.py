"""Every tracker for real, without a network: the same numbers in all, one curve of a resumed run, tables with images.

The tests of a tool are skipped without its extra: `make install-trackers`, which `make test` does.
"""

import csv
import io
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.config.tracking import Tool
from stages.config.yaml import flatten
from stages.trackers.tracked_run import TrackedRun
from stages.trackers.trackers import OPENERS, Trackers

Curves = dict[str, list[tuple[int, float]]]
SETTINGS = flatten({"ril": {"steps": 4, "sampling": {"top_p": 0.95}, "rewards": []}, "seed": 0})


def make_run(folder: Path) -> TrackedRun:
    (folder / "project").mkdir(exist_ok=True)
    return TrackedRun("ril", "ril-0123", "tests", "exp-1", SETTINGS, folder / "store", folder / "project")


def make_images() -> dict[str, Sequence[bytes]]:
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(image, "PNG")
    return {"q1": (image.getvalue(),), "q2": (image.getvalue(), image.getvalue())}


def add_step(records: Mapping[str, list[dict[str, Any]]], step: int, scale: float = 1.0) -> None:
    """Appends what the loop appends in a step; every second one is validated."""
    records["history"].append(
        {"step": step, "loss": scale / step, "rewards/student/mean": 0.25 * step, "kl": None if step == 1 else 0.5}
    )
    for name in ("q1", "q2"):
        records["samples"].append({"step": step, "question_id": name, "response": f"{name} {step}", "answer": 1})
    if step % 2 == 0:
        records["validation"].append({"step": step, "validation": step / 8})


def track(tool: Tool, folder: Path, records: dict[str, list[dict[str, Any]]], steps: range, scale: float = 1.0) -> None:
    """One process: the records of earlier steps are there at its start."""
    said: list[str] = []
    trackers = Trackers([tool], make_run(folder), True, said.append)
    images: dict[str, Sequence[bytes]] = {}
    for step in steps:
        add_step(records, step, scale)
        images |= make_images()
        trackers.write(records, images)
    trackers.close(True)
    assert said == []


def list_wandb_records(folder: Path, seconds: float = 60) -> list[Any]:
    """The records of a finished run's .wandb file.

    The end of a run is only announced to wandb's own process: it writes the file's last 32 KiB a moment later.
    """
    (file,) = (folder / "store" / "wandb").rglob("*.wandb")
    end, found = time.monotonic() + seconds, parse_wandb_records(file.read_bytes())
    while not any(one.WhichOneof("record_type") == "exit" for one in found):
        assert time.monotonic() < end, f"no end of the run in {seconds:.0f} s"
        time.sleep(0.1)
        found = parse_wandb_records(file.read_bytes())
    return found


def parse_wandb_records(data: bytes) -> list[Any]:
    """The records of a log of LevelDB: blocks of 32 KiB, with parts of 7 bytes of head and content."""
    from wandb.proto import wandb_internal_pb2

    at, whole = 7, b""
    found = []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no head fits into the rest of a block
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def read_wandb(folder: Path) -> Curves:
    curves: Curves = {}
    for record in list_wandb_records(folder):
        items = [("/".join(one.nested_key), json.loads(one.value_json)) for one in record.history.item]
        values = dict(items)
        for key, value in values.items():
            if key != "step" and not key.startswith(("_", "samples/")):
                curves.setdefault(key, []).append((values["step"], value))
    return curves


def open_mlflow(folder: Path) -> tuple[Any, Any]:
    """The client, and the only run that is not deleted."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def read_mlflow(folder: Path) -> Curves:
    client, run = open_mlflow(folder)
    return {
        key: sorted((one.step, one.value) for one in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
    }


def read_dvclive(folder: Path) -> Curves:
    metrics = folder / "project" / "dvclive" / "ril" / "plots" / "metrics"
    curves: Curves = {}
    for file in metrics.rglob("*.tsv"):
        name = str(file.relative_to(metrics).with_suffix(""))
        with file.open() as handle:
            rows = list(csv.DictReader(handle, delimiter="\t"))
        curves[name] = [(int(row["step"]), float(next(v for k, v in row.items() if k != "step"))) for row in rows]
    return curves


READERS: dict[Tool, Callable[[Path], Curves]] = {"wandb": read_wandb, "mlflow": read_mlflow, "dvclive": read_dvclive}


def expected(scale: float = 1.0) -> Curves:
    return {
        "loss": [(step, scale / step if step > 2 else 1 / step) for step in range(1, 5)],
        "rewards/student/mean": [(step, 0.25 * step) for step in range(1, 5)],
        "kl": [(step, 0.5) for step in range(2, 5)],
        "validation": [(2, 0.25), (4, 0.5)],
    }


@pytest.mark.parametrize("tool", OPENERS)
def test_a_tool_has_the_numbers_of_every_step(tool: Tool, tmp_path: Path) -> None:
    pytest.importorskip(tool)
    track(tool, tmp_path, {"history": [], "validation": [], "samples": []}, range(1, 5))
    assert READERS[tool](tmp_path) == expected()


@pytest.mark.parametrize("tool", OPENERS)
def test_a_resumed_run_has_one_curve(tool: Tool, tmp_path: Path) -> None:
    """The first process ends after step 3, its last checkpoint has two steps; step 3 has other numbers again."""
    pytest.importorskip(tool)
    records: dict[str, list[dict[str, Any]]] = {"history": [], "validation": [], "samples": []}
    track(tool, tmp_path, records, range(1, 4), scale=1.0)
    kept = {name: [row for row in rows if row["step"] <= 2] for name, rows in records.items()}
    track(tool, tmp_path, kept, range(3, 5), scale=7.0)
    assert READERS[tool](tmp_path) == expected(scale=7.0)


def test_wandb_has_name_settings_and_a_table_with_images(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    track("wandb", tmp_path, {"history": [], "validation": [], "samples": []}, range(1, 5))
    (run,) = [one.run for one in list_wandb_records(tmp_path) if one.WhichOneof("record_type") == "run"][:1]
    assert (run.display_name, run.run_id, run.run_group, run.project) == ("ril", "ril-0123", "exp-1", "tests")
    config = {one.key: json.loads(one.value_json) for one in run.config.update}
    assert SETTINGS.items() <= config.items()
    tables = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("*.table.json"))]
    assert len(tables) == 2
    table = next(one for one in tables if "q1 4" in str(one))
    assert table["columns"] == ["image_1", "image_2", "step", "question_id", "response", "answer"]
    assert [row[2:] for row in table["data"]] == [[4, "q1", "q1 4", 1], [4, "q2", "q2 4", 1]]
    assert [row[:2] for row in table["data"]] == [["Image", None], ["Image", "Image"]]
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == make_images()["q1"][0]]
    assert kept, "the files of the images wait in the store"


def test_mlflow_has_name_settings_and_a_table_with_images(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    track("mlflow", tmp_path, {"history": [], "validation": [], "samples": []}, range(1, 5))
    client, run = open_mlflow(tmp_path)
    assert (run.info.run_name, run.info.status) == ("ril", "FINISHED")
    assert run.data.params == {"ril.steps": "4", "ril.sampling.top_p": "0.95", "ril.rewards": "[]", "seed": "0"}
    assert (run.data.tags["ril.id"], run.data.tags["dvc.experiment"]) == ("ril-0123", "exp-1")
    (table,) = tmp_path.rglob("step_4.json")
    assert json.loads(table.read_text()) == {
        "columns": ["image", "step", "question_id", "response", "answer"],
        "data": [["samples/step_4/q1.png", 4, "q1", "q1 4", 1], ["samples/step_4/q2.png", 4, "q2", "q2 4", 1]],
    }
    artifacts = table.parents[1]
    assert Image.open(artifacts / "samples/step_4/q1.png").size == (8, 8)
    assert client


def test_nan_reaches_mlflow(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    records: dict[str, list[dict[str, Any]]] = {"history": [{"step": 1, "loss": math.nan}]}
    trackers = Trackers(["mlflow"], make_run(tmp_path), True, print)
    trackers.write(records, {})
    trackers.close(False)
    ((_, value),) = read_mlflow(tmp_path)["loss"]
    assert math.isnan(value)
    assert open_mlflow(tmp_path)[1].info.status == "FAILED"


def test_dvc_shows_the_curves_of_dvclive_and_nothing_is_stale(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dvclive")
    project = make_run(tmp_path).root
    monkeypatch.chdir(project)

    def dvc(*arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    subprocess.run(["git", "init", "--quiet"], check=True, timeout=60)
    shutil.copy(root / ".gitignore", project)  # DVC looks into no folder that Git ignores
    dvc("init", "--quiet")
    named = ["git", "-c", "user.name=a", "-c", "user.email=a@localhost"]  # dvclive wants a commit
    subprocess.run([*named, "commit", "--quiet", "--all", "--message", "start"], check=True, timeout=60)
    track("dvclive", tmp_path, {"history": [], "validation": [], "samples": []}, range(1, 5))
    (metrics,) = json.loads(dvc("metrics", "show", "--json"))[""]["data"].values()
    assert metrics["data"] == {
        "loss": 0.25,
        "rewards": {"student": {"mean": 1.0}},
        "kl": 0.5,
        "validation": 0.5,
        "step": 4,
    }
    assert json.loads(dvc("status", "--json")) == {}
