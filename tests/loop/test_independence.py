"""The plain computation shares no code with the stages that it judges."""

import ast
from pathlib import Path

ALLOWED = {"collections", "dataclasses", "io", "math", "pathlib", "typing", "PIL", "torch", "transformers"}


def test_the_plain_computation_imports_nothing_of_ours_but_itself() -> None:
    files = sorted(Path(__file__).parent.glob("plain*.py"))
    assert len(files) == 3
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in found:
                assert name.split(".")[0] in ALLOWED or name.startswith("tests.loop.plain"), f"{file.name}: {name}"
