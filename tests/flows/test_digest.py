"""The digest of code: words change nothing, everything else changes the definition that it stands in."""

import ast
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.digest import HELP_ARGUMENTS, IMPORTS, ORDER, CodeChange, compare_code, digest_file, digest_files, hash_code

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "stages").rglob("*.py"))


def named(before: str, after: str) -> list[tuple[str, str]]:
    """Which definitions differ, and how."""
    found = compare_code({"x.py": digest_file(before.encode())}, {"x.py": digest_file(after.encode())})
    return [(one.name, one.what) for one in found]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "# why\nx = 1  # because"),
        ("x = [1,2]", "x = [\n    1,\n    2,\n]"),
        ('x = "one two"', "x = 'one ' \"two\""),
        ('def f():\n    """Old."""\n    return 1', "def f():\n    '''New.'''\n    return 1"),
        ('def f():\n    """Old."""', "def f():\n    pass"),
        ('class A:\n    """Old."""\n\n    x: int = 1\n    """Of x."""', "class A:\n    x: int = 1"),
        ('"""Module."""\nx = 1', "x = 1"),
        ("import a\nfrom b import c, d", "from b import d\nfrom b import c\nimport a"),
        ("x = Field(1, description='old', ge=0)", "x = Field(1, ge=0, description='new ' + other)"),
        (
            "def f(a: Annotated[int, typer.Option(help='old')] = 1): ...",
            "def f(a: Annotated[int, typer.Option()] = 1): ...",
        ),
        ("if TYPE_CHECKING:\n    import a\nx = 1", "x = 1"),
        ("def f(): ...\ndef g(): ...", "def g(): ...\ndef f(): ..."),
        ("x = 1\ndef f(): ...", "def f(): ...\nx = 1"),
    ],
)
def test_words_change_nothing(before: str, after: str) -> None:
    assert digest_file(before.encode()) == digest_file(after.encode())


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("x = 1", "x = 1.0", [("x", "changed")]),
        ("x = 'a'", "x = b'a'", [("x", "changed")]),
        ("x = None", "x = ''", [("x", "changed")]),
        ("x, y = 1, 2", "x, y = 2, 1", [("x, y", "changed")]),
        ("def f():\n    return 1", "def f():\n    return 2", [("f", "changed")]),
        ("def f(a): ...", "def f(a=None): ...", [("f", "changed")]),
        ("def f(a): ...", "def f(b): ...", [("f", "changed")]),
        ("def f(): ...", "@cache\ndef f(): ...", [("f", "changed")]),
        ("def f(): ...", "async def f(): ...", [("f", "changed")]),
        ("def f():\n    raise ValueError('old')", "def f():\n    raise ValueError('new')", [("f", "changed")]),
        ("def f():\n    return '''old'''", "def f():\n    return '''new'''", [("f", "changed")]),
        ("def f(): ...", "def f(): ...\ndef g(): ...", [("g", "added")]),
        ("def f(): ...", "", [("f", "removed")]),
        ("class A:\n    def f(self): ...", "class A:\n    def f(self):\n        return 1", [("A.f", "changed")]),
        ("class A:\n    x = 1\n    y = 2", "class A:\n    y = 2\n    x = 1", [("A", "changed")]),
        ("class A(B): ...", "class A(C): ...", [("A", "changed")]),
        ("class A:\n    class B:\n        x = 1", "class A:\n    class B:\n        x = 2", [("A.B", "changed")]),
        ("import a", "import a as b", [(IMPORTS, "changed")]),
        ("from a import b", "from .a import b", [(IMPORTS, "changed")]),
        ("x = 1\ny = x\nx = 2", "x = 1\nx = 2\ny = x", [(ORDER, "changed")]),
        ("x = 1", "x = 1\ny = 2", [("y", "added")]),
        ("x = Field(1, description='a')", "x = Field(2, description='a')", [("x", "changed")]),
        (
            "x = plot(1, title='old', description='old')",
            "x = plot(1, title='new', description='old')",
            [("x", "changed")],
        ),
        ("if debug:\n    x = 1", "if debug:\n    x = 2", [("module", "changed")]),
        ("for i in a:\n    f(i)", "for i in b:\n    f(i)", [("i", "changed")]),
        ("x: int = 1", "x: float = 1", [("x", "changed")]),
    ],
)
def test_anything_else_is_a_change_of_what_it_stands_in(
    before: str, after: str, expected: list[tuple[str, str]]
) -> None:
    assert named(before, after) == expected


def test_a_file_that_is_no_python_is_one_definition() -> None:
    assert digest_file(b"<p>", "page.html").keys() == {""}
    assert digest_file(b"<p>", "page.html") != digest_file(b"<P>", "page.html")


def test_files_that_come_and_go_are_named() -> None:
    before, now = {"a.py": {"f": "1"}, "b.py": {}}, {"a.py": {"f": "1"}, "c.py": {}}
    assert compare_code(before, now) == [CodeChange("b.py", "", "removed"), CodeChange("c.py", "", "added")]
    assert hash_code(before) != hash_code(now)
    assert str(CodeChange("a.py", "f", "changed")) == "a.py::f changed"


def test_every_file_of_ours_says_the_same_in_another_form() -> None:
    """Python's own printer drops all comments and lays lines out in its own way."""
    assert len(FILES) > 100
    for file in FILES:
        text = file.read_text()
        assert digest_file(text.encode()) == digest_file(ast.unparse(ast.parse(text)).encode()), file


@given(st.sampled_from(FILES), st.randoms(use_true_random=False))
def test_one_other_number_in_a_file_of_ours_is_one_change(file: Path, draw: random.Random) -> None:
    tree = ast.parse(file.read_text())
    numbers = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is int]
    if not numbers:
        return
    before = ast.unparse(tree)
    number = draw.choice(numbers)
    number.value += 1
    (change,) = named(before, ast.unparse(tree))
    assert change[1] == "changed"


def test_no_stage_reads_what_counts_as_words() -> None:
    """Else a change of it could change a result: help texts are for people, docstrings as well."""
    readers = ("__doc__", "getdoc", "getsource", "description", "model_json_schema", "json_schema")
    found = [
        f"{file.relative_to(ROOT)}: {node.attr}"
        for file in FILES
        if "config" not in file.parts  # which makes forms and docs of them
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in readers
    ]
    assert not found


def test_help_texts_are_those_of_calls_that_settings_and_commands_make() -> None:
    """A keyword counts as words only where such a name is called; none is defined outside stages/config."""
    defined = {
        node.name
        for file in FILES
        if "config" not in file.parts
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert not defined & HELP_ARGUMENTS.keys()


def test_code_of_a_project_is_read_anew_after_an_edit(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    first: Mapping[str, Mapping[str, str]] = digest_files(tmp_path, [Path("a.py")])
    (tmp_path / "a.py").write_text("x = 2")
    assert compare_code(first, digest_files(tmp_path, [Path("a.py")])) == [CodeChange("a.py", "x", "changed")]


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f(:")
    with pytest.raises(SyntaxError) as error:
        digest_files(tmp_path, [Path("a.py")])
    assert error.value.filename == "a.py"
