"""Shapes of the project's functions: a call can be read without counting its arguments."""

import ast
from pathlib import Path

import pytest

MOST_PARAMETERS = 6
# Their parameters are the options of a command (typer) or the fields of a form (Prefect); no code calls them.
FILLED_IN_BY_USERS = ("command", "flow")
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def parameters(function: Function) -> list[str]:
    """Names of the parameters without self and cls; `*names` and `**names` are one each."""
    given = function.args
    found = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    names = [one.arg for one in found]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def is_filled_in_by_users(function: Function) -> bool:
    calls = [one.func for one in getattr(function, "decorator_list", ()) if isinstance(one, ast.Call)]
    names = [one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", "") for one in calls]
    return any(name in FILLED_IN_BY_USERS for name in names)


def long_signatures(text: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, Function)]
    return [
        f"{getattr(one, 'name', 'lambda')}({', '.join(names)}), line {one.lineno}"
        for one in functions
        if len(names := parameters(one)) > MOST_PARAMETERS and not is_filled_in_by_users(one)
    ]


@pytest.mark.parametrize("part", ["flows", "stages", "studies"])
def test_no_function_has_more_than_six_parameters(root: Path, part: str) -> None:
    files = sorted((root / part).rglob("*.py"))
    assert len(files) > 5
    found = {str(file.relative_to(root)): long_signatures(file.read_text(encoding="utf-8")) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_a_long_signature_is_found_and_a_command_is_none() -> None:
    assert long_signatures("def f(a, b, c, d, e, /, *, f, **g): ...") == ["f(a, b, c, d, e, f, g), line 1"]
    assert long_signatures("class A:\n    def f(self, a, b, c, d, e, *f): ...") == []
    assert len(long_signatures("class A:\n    async def f(self, a, b, c, d, e, f, g): ...")) == 1
    assert len(long_signatures("f = lambda a, b, c, d, e, f, g: 0")) == 1
    assert long_signatures("@app.command()\ndef f(a, b, c, d, e, f, g): ...") == []
    assert len(long_signatures("@contextmanager\ndef f(a, b, c, d, e, f, g): ...")) == 1
