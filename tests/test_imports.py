"""Import rules: flows -> stage file -> parts, and who alone may use which library."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from stages.config.model import FamilyName

PURE = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


def modules(root: Path) -> list[Path]:
    return sorted(
        [*(root / "flows").rglob("*.py"), *(root / "stages").rglob("*.py"), *(root / "studies").rglob("*.py")]
    )


def test_import_linter_keeps_every_contract(root: Path) -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 kept, 0 broken" in result.stdout


def test_only_flows_dvc_starts_dvc(root: Path) -> None:
    starters = [path.relative_to(root) for path in modules(root) if starts_dvc(ast.parse(path.read_text()))]
    assert [str(path) for path in starters] == ["flows/dvc/repro.py"]


def starts_dvc(tree: ast.Module) -> bool:
    """Whether a module can start processes and holds "dvc" as a word of a command."""
    names = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    lists = [node for node in ast.walk(tree) if isinstance(node, ast.List | ast.Tuple)]
    words = {part.value for node in lists for part in node.elts if isinstance(part, ast.Constant)}
    return "subprocess" in names and "dvc" in words


@pytest.mark.parametrize(
    "source", ['import subprocess\nsubprocess.run(["dvc", "repro"])', 'import subprocess\nx = ("-m", "dvc")']
)
def test_the_check_for_starters_of_dvc_can_fail(source: str) -> None:
    assert starts_dvc(ast.parse(source))


def test_dvc_yaml_never_calls_what_calls_dvc(root: Path) -> None:
    text = (root / "dvc.yaml").read_text()
    commands = [line.split("cmd:")[1].strip() for line in text.splitlines() if line.strip().startswith("cmd:")]
    assert len(commands) == 12
    assert all(command.startswith("exec python -m flows.run ") for command in commands)


def test_stages_know_nothing_of_what_dvc_keeps(root: Path) -> None:
    """What Git, DVC and its lock file know is handed to a stage as plain values (`Job.repository`, `Job.store`)."""
    words = ("refs/exps", "DVC_", '"dvc.lock"', '"git"')
    texts = {str(path.relative_to(root)): path.read_text() for path in modules(root)}
    knowing = {path for path, text in texts.items() if any(word in text for word in words)}
    assert "flows/dvc/experiments.py" in knowing
    assert not [path for path in knowing if path.startswith("stages/")]


def test_only_vlm_knows_a_family_by_name(root: Path) -> None:
    """stages/job lists the families as a type; everything else asks stages/vlm."""
    names = set(get_args(FamilyName)) - {"text"}  # that one is also what columns are called
    knowing = set()
    for path in modules(root):
        part = path.relative_to(root).parts[1]
        literals = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        if part not in ("vlm", "config") and path.name != "shapes.py" and literals & names:
            knowing.add(str(path.relative_to(root)))
    assert not knowing


def test_there_is_one_image_marker(root: Path) -> None:
    nodes = {path: ast.walk(ast.parse(path.read_text())) for path in modules(root)}
    found = [path for path, own in nodes.items() for node in own if getattr(node, "value", None) == "<image>"]
    assert [str(path.relative_to(root)) for path in found] == ["stages/corpora/markers.py"]


def test_importing_a_module_does_no_work(root: Path) -> None:
    assert len(modules(root)) > 20
    busy = [
        f"{path.relative_to(root)}:{line}"
        for path in modules(root)
        for line in working_lines(ast.parse(path.read_text()))
    ]
    assert not busy


def working_lines(tree: ast.Module) -> Iterator[int]:
    for node in tree.body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guarded = isinstance(node, ast.If) and (
            "__name__" in ast.dump(node.test) or "TYPE_CHECKING" in ast.dump(node.test)
        )
        registered = isinstance(node, ast.Expr) and "add_typer" in ast.dump(node.value)
        if not (isinstance(node, PURE) or text or guarded or registered):
            yield node.lineno
