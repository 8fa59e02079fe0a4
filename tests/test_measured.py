"""The script of the measured tables, run as its heading says, on the reports of a run with a lock as long as ours."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from stages.config.params import load_params


def test_both_tables_are_written_anew(root: Path, tmp_path: Path) -> None:
    for folder in ("docs", "flows", "stages"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    for file in ("README.md", "params.yaml"):
        shutil.copy(root / file, tmp_path / file)
    params = load_params(root / "params.yaml")
    for number, name in enumerate(params.evaluations):
        found = {"accuracy": 0.5 + number / 100, "standard_error": 0.0271, "accuracy_shuffled": 0.1}
        write_report(tmp_path / "reports/evaluate" / name / "metrics.json", found)
    parts = {"train": 30.4, "load": 1.2, "save": 5.0, "verify": 2.0, "least": 0.4}
    write_report(tmp_path / "reports/model/judge/timing.json", {"seconds": 41.6, "parts": parts})
    files = [{"path": f"stages/{number}.py", "md5": "0" * 32, "size": number} for number in range(2000)]
    lock = {"schema": "2.0", "stages": {"model@judge": {"cmd": "x", "deps": files}, "report": {"cmd": "y"}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    words = [sys.executable, "docs/measured.py", "--project", ".", "--seconds", "810"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    scores, times = ((tmp_path / name).read_text() for name in ("README.md", "docs/architecture.md"))
    title = next(iter(params.evaluations.values())).title
    assert f"| {title} | 50.0 ± 2.7 | 10.0 |" in scores
    assert "| model@judge | 42 | train 30, save 5, verify 2, load 1 |" in times
    for text, before in ((scores, root / "README.md"), (times, root / "docs/architecture.md")):
        assert text.count("13.5 minutes on two cores") == 1
        kept = before.read_text()
        assert text.partition("<!-- measured -->")[0] == kept.partition("<!-- measured -->")[0]
        assert text.partition("<!-- /measured -->")[2] == kept.partition("<!-- /measured -->")[2]


def write_report(path: Path, found: dict[str, object]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(found))
