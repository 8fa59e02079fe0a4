"""Ids of models, teachers and evaluations reach no shell and no folder but their own, whoever starts DVC."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.run import _find_item
from stages.config.params import validate_params
from stages.config.table import STAGES
from stages.config.yaml import ParamsError, read_yaml

HOSTILE = (
    *("x$(touch PWNED)", "`touch PWNED`", ";touch PWNED", "x;touch PWNED;", "a\ntouch PWNED", "a\rtouch PWNED"),
    *("x|touch PWNED", "x&touch PWNED", "x>PWNED", "x<(touch PWNED)", "$PATH", "${key}", "${models}", "a${key}b"),
    *("'", '"', "'\"$(touch PWNED)", "\\", "a b", " a", "a ", "\t", "*", "?", "[a]", "{a,b}", "~", "~root", "!x"),
    *("#x", "-x", "--help", "a=b", "a:b", "a@b", "a%b", "a,b", "a\0b", "a\x1bb"),
    *("\u202ex", "\u00fc", "\uff41", "x\u0301"),
    *("..", ".", "../keep", "../../keep", "../../../keep", "../model", "x/../../keep", "../keep/.", "./../keep//"),
    *("../../.git", "../../.dvc", "../../reports/keep", "../../data/keep", "/tmp/keep", "/", "a/b", "a/../b", "a.b"),
    *("", "1x", "x" * 65, "x" * 300),
)
BLOCKS = {"models": ("model",), "teachers": ("teacher", "verdict"), "evaluations": ("evaluate",)}
PIPELINES = ["data/keep/file", "keep/file", "reports/keep/file"]


@pytest.mark.parametrize("block", BLOCKS)
def test_parameters_refuse_other_characters_in_one_line(root: Path, block: str) -> None:
    values = read_yaml(root / "params.yaml")
    for name in HOSTILE:
        added = {**values[block], name: next(iter(values[block].values()))}
        refusal = r"(must be letters, digits and _|is not a name of a key).*rename it"
        with pytest.raises(ParamsError, match=refusal) as caught:
            validate_params({**values, block: added})
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize("block", BLOCKS)
def test_dvc_itself_refuses_an_id_or_keeps_it_in_its_folder(make_project: Callable[..., Path], block: str) -> None:
    """Without `ril` nothing checks the ids before DVC removes the outs of a stage; .dvcignore does."""
    project = make_project({})
    values = read_yaml(project / "params.yaml")
    Repo.init(str(project), no_scm=True).close()
    declared = read_yaml(project / "dvc.yaml")["stages"]
    parts = {kind: {**declared[kind], "do": {**declared[kind]["do"], "deps": ["flows"]}} for kind in BLOCKS[block]}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": parts}))  # without the code it loads ten times faster
    refused = 0
    for name in HOSTILE:
        added = {**values[block], name: next(iter(values[block].values()))}
        (project / "params.yaml").write_text(yaml.safe_dump({**values, block: added}, sort_keys=False))
        try:
            with Repo(str(project)) as repo:
                repo.index.check_graph()
                stages = list(repo.index.stages)
        except (DvcException, ValueError, AssertionError):  # of an empty id DVC says nothing better
            refused += 1
            continue
        for stage in stages:
            kind = stage.name.split("@")[0]
            assert stage.cmd == f"exec python -m flows.run {kind}"
            folders = (project / "data" / kind, project / "reports" / kind)
            assert all(any(Path(out.fs_path).is_relative_to(one) for one in folders) for out in stage.outs), name
            assert len(Path(stage.outs[0].fs_path).relative_to(project).parts) > 1
    assert refused >= len(HOSTILE) - 4, "all but those that only are long, a digit first, or folders in folders"


def test_dvc_repro_runs_nothing_and_removes_nothing(make_project: Callable[..., Path]) -> None:
    project = make_project({})
    values = read_yaml(project / "params.yaml")
    Repo.init(str(project), no_scm=True).close()
    for file in PIPELINES:
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        (project / file).write_text("kept")
    environment = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"}
    for name in ("x$(touch PWNED)", "a\ntouch PWNED", "../keep", "x" * 65):
        models = {name: {"family": "qwen2_5", "path": "nowhere"}, **values["models"]}
        (project / "params.yaml").write_text(yaml.safe_dump({**values, "models": models}, sort_keys=False))
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", f"model@{name}"]
        environment["PYTHONPATH"] = str(project)
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode != 0
        assert not list(project.rglob("PWNED"))
        assert all((project / file).read_text() == "kept" for file in PIPELINES), done.stderr
    assert "must be letters, digits and _" in done.stderr, "the last one comes as far as our own check"


def test_no_command_holds_a_parameter(root: Path) -> None:
    commands = [line for line in (root / "dvc.yaml").read_text().splitlines() if line.strip().startswith("cmd:")]
    assert len(commands) == len(STAGES)
    assert not [line for line in commands if "$" in line]


def test_dvcignore_knows_every_stage(root: Path) -> None:
    lines = (root / ".dvcignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert {line.removeprefix("!/reports/") for line in patterns if line.startswith("!")} == set(STAGES)
    assert max(map(patterns.index, [line for line in patterns if line.startswith("!")])) < patterns.index("code.json")
    for stage in STAGES.values():
        assert (f"/reports/{stage.name}/*[!A-Za-z0-9_]*/metrics.json" in patterns) == bool(stage.items)


@pytest.mark.parametrize(
    ("variable", "item"),
    [
        ("teacher@internvl3", "internvl3"),
        ("../dvc.yaml:teacher@internvl3", "internvl3"),
        ("a: b/dvc.yaml:teacher@internvl3", "internvl3"),
        ("verdict@internvl3", None),
        ("teacher", None),
        ("teacher@", None),
        ("", None),
    ],
)
def test_the_item_is_what_dvc_says(monkeypatch: pytest.MonkeyPatch, variable: str, item: str | None) -> None:
    monkeypatch.setenv("DVC_STAGE", variable)
    assert _find_item("teacher") == item
