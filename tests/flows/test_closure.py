"""Which files a stage reaches: read from the source of small made-up packages, and held against what a run opens."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.closure import (
    ComputedImport,
    find_reached_files,
    find_unlisted_files,
    is_empty,
    list_code_dependencies,
    list_dependencies,
    update_code_dependencies,
)
from flows.code_record import WatchedCode
from flows.jobs import open_job
from flows.work import list_code_inputs
from stages.config.params import load_params

PACKAGE = {
    "stages/__init__.py": "",
    "stages/one.py": "",
    "stages/part/__init__.py": '"""A part."""',
    "stages/part/a.py": "",
    "stages/part/b.py": "",
    "stages/part/inner/__init__.py": "",
    "stages/part/inner/c.py": "",
}
ABOVE = {"stages/__init__.py", "stages/part/__init__.py"}


@pytest.fixture
def make(tmp_path: Path) -> Callable[[Mapping[str, str]], Path]:
    """Writes the package with other contents for some files, and further files."""

    def write(contents: Mapping[str, str]) -> Path:
        for name, text in {**PACKAGE, **contents}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def reached(root: Path, stage: str = "one") -> set[str]:
    return {str(path) for path in find_reached_files(root, f"stages.{stage}")} - {"stages/one.py", "stages/__init__.py"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import json, stages.part.a", {"stages/part/a.py"}),
        ("from stages.part.a import x as y", {"stages/part/a.py"}),
        ("from stages.part import a", {"stages/part/a.py"}),
        ("from stages.part import a, b", {"stages/part/a.py", "stages/part/b.py"}),
        ("from stages.part import NAME", set()),
        ("from .part import a", {"stages/part/a.py"}),
        ("from . import part", {f"stages/part/{name}.py" for name in ("a", "b", "inner/__init__", "inner/c")}),
        ("from stages import part", {f"stages/part/{name}.py" for name in ("a", "b", "inner/__init__", "inner/c")}),
        ("from stages.part import inner", {"stages/part/inner/__init__.py", "stages/part/inner/c.py"}),
        ("from stages.part.a import *", {"stages/part/a.py"}),
        ("def f():\n    from stages.part import a", {"stages/part/a.py"}),
        ("class A:\n    def f(self):\n        import stages.part.a", {"stages/part/a.py"}),
        (
            "try:\n    import stages.part.a\nexcept ImportError:\n    import stages.part.b",
            {"stages/part/a.py", "stages/part/b.py"},
        ),
        ("import importlib\nimportlib.import_module('stages.part.a')", {"stages/part/a.py"}),
        ("command = ['python', '-m', 'stages.part.a']", {"stages/part/a.py"}),
    ],
)
def test_a_form_of_import_reaches_its_module(make: Callable[..., Path], source: str, expected: set[str]) -> None:
    assert reached(make({"stages/one.py": source})) == expected | {"stages/part/__init__.py"}


@pytest.mark.parametrize(
    "source",
    [
        "import json",
        "# import stages.part.a",
        "'''from stages.part import a'''",
        "text = 'see stages.part.a'",
        "import stages_of_others.part.a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stages.part import a",
        "import typing\nif typing.TYPE_CHECKING:\n    from stages.part import a",
        "name = 'b.py'\nfolder = 'stages/part'",
    ],
)
def test_what_never_runs_reaches_nothing(make: Callable[..., Path], source: str) -> None:
    assert reached(make({"stages/one.py": source})) == set()


def test_the_other_branch_of_a_test_for_type_checkers_runs(make: Callable[..., Path]) -> None:
    source = "if TYPE_CHECKING:\n    from stages.part import a\nelse:\n    from stages.part import b"
    assert reached(make({"stages/one.py": source})) == {"stages/part/__init__.py", "stages/part/b.py"}


def test_an_init_file_above_runs_and_so_does_what_it_imports(make: Callable[..., Path]) -> None:
    root = make({"stages/one.py": "import stages.part.a", "stages/part/__init__.py": "from stages.part.b import x"})
    assert reached(root) == {"stages/part/__init__.py", "stages/part/a.py", "stages/part/b.py"}


def test_circles_of_imports_end(make: Callable[..., Path]) -> None:
    root = make({"stages/one.py": "import stages.part.a", "stages/part/a.py": "def f():\n    import stages.one"})
    assert reached(root) == {"stages/part/__init__.py", "stages/part/a.py"}


def test_a_module_that_reads_its_own_folder_reaches_the_data_in_it(make: Callable[..., Path]) -> None:
    data = {
        "stages/part/page.html": "",
        "stages/part/sections/x.html": "",
        "stages/part/.hidden": "",
        "stages/part/inner/y.json": "",
    }
    source = "from pathlib import Path\nhere = Path(__file__).parent\nother = here / 'b.py'"
    root = make({"stages/one.py": "import stages.part.a", "stages/part/a.py": source, **data})
    assert reached(root) - {"stages/part/__init__.py", "stages/part/a.py"} == {
        "stages/part/b.py",
        "stages/part/page.html",
        "stages/part/sections/x.html",
    }


def test_a_computed_import_needs_its_package(make: Callable[..., Path]) -> None:
    registry = "import importlib\nimport pkgutil\nimportlib.import_module(f'stages.part.{name}')\n"
    with pytest.raises(ComputedImport, match=r"stages/one.py, line 3: imports a module by a computed name"):
        reached(make({"stages/one.py": registry}))
    assert "stages/part/b.py" in reached(make({"stages/one.py": registry + "from stages import part"}))


def test_an_edit_is_seen_in_the_same_process(make: Callable[..., Path]) -> None:
    root = make({})
    assert reached(root) == set()
    (root / "stages" / "one.py").write_text("import stages.part.a")
    assert reached(root) == {"stages/part/__init__.py", "stages/part/a.py"}


NAMES = ("a", "b", "c", "d", "e")


@given(st.dictionaries(st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES)), min_size=1))
def test_what_is_reached_is_closed_and_nothing_more(
    tmp_path_factory: pytest.TempPathFactory, graph: Mapping[str, set[str]]
) -> None:
    root = tmp_path_factory.mktemp("graph")
    (root / "stages").mkdir()
    for name in NAMES:
        source = "".join(f"def f{other}():\n    import stages.{other}\n" for other in sorted(graph.get(name, ())))
        (root / "stages" / f"{name}.py").write_text(source)
    expected, waiting = set[str](), ["a"]
    while waiting:
        name = waiting.pop()
        if name not in expected:
            expected.add(name)
            waiting += graph.get(name, ())
    assert find_reached_files(root, "stages.a") == {Path("stages", f"{name}.py") for name in expected}


# --- what dvc.yaml lists ----------------------------------------------------------------------------------------------


def test_a_folder_stands_for_its_files_where_all_of_them_are_reached(make: Callable[..., Path]) -> None:
    root = make({"stages/one.py": "import stages.part.a, stages.part.inner.c"})
    assert list_dependencies(root, "stages.one") == ["stages/one.py", "stages/part/a.py", "stages/part/inner"]
    root = make({"stages/one.py": "import stages.part.a, stages.part.b, stages.part.inner.c"})
    assert list_dependencies(root, "stages.one") == ["stages/one.py", "stages/part"]
    (root / "stages" / "part" / ".b.py.swp").write_text("left by an editor")
    assert list_dependencies(root, "stages.one") == ["stages/one.py", "stages/part"]
    (root / "stages" / "part" / "new.py").write_text("")
    assert "stages/part" not in list_dependencies(root, "stages.one")


def test_tiny_code_is_left_to_parameters(make: Callable[..., Path]) -> None:
    root = make(
        {"stages/one.py": "import stages.tiny.world", "stages/tiny/__init__.py": "", "stages/tiny/world.py": ""}
    )
    assert "stages/tiny/world.py" in reached(root)
    assert list_code_dependencies(root, "one") == ["stages/one.py"]


def test_rewriting_dvc_yaml_changes_code_alone(make: Callable[..., Path]) -> None:
    text = (
        "stages:\n  one:\n    cmd: run one\n    deps:\n      - stages/old.py\n      - ${where}\n      - data/x\n"
        "    outs: [data/one]\nplots: []\n"
    )
    root = make({"stages/one.py": "import stages.part.a"})
    rewritten = update_code_dependencies(root, text)
    assert rewritten == text.replace("stages/old.py", "stages/one.py\n      - stages/part/a.py")
    assert update_code_dependencies(root, rewritten) == rewritten
    (root / "dvc.yaml").write_text(text)
    assert find_unlisted_files(root, "one") == ["stages/one.py", "stages/part/a.py"]
    (root / "dvc.yaml").write_text(text.replace("stages/old.py", "stages"))
    assert find_unlisted_files(root, "one") == []


# --- the second line of defence: what a run really opens -----------------------------------------------------------


WATCH = """
import json, sys
from pathlib import Path
from flows.work import Work
from stages.job.progress import Progress

root = Path.cwd()
opened = set()

def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(f"{root}/stages/"):
        opened.add(arguments[0])

work = Work(sys.argv[1], *sys.argv[2:3] or [None], root)
before = set(sys.modules)
sys.addaudithook(note)
work.run(Progress())
modules = [sys.modules[name].__file__ for name in set(sys.modules) - before if name.startswith("stages.")]
seen = [Path(path) for path in {*opened, *modules} if path and "__pycache__" not in path]
names = [str(path.relative_to(root)) for path in seen if path.is_file()]
Path(".ril/opened.json").write_text(json.dumps(names))
"""
TINY_BUILD = {"steps": 1, "vision_steps": 0, "reading_steps": 0, "rows_per_step": 2, "warmup_steps": 0}
SMALL = {
    "questions": {"splits": {"warm_start": 8, "imitation": 4, "validation": 2, "test": 4}},
    "models": {"student": {"build": TINY_BUILD}},
    "warm_start": {"steps": 1, "rows_per_step": 2},
}


# Opened by flows, which changes no result: to give each rank its GPU, and to count the judge's exam for the plan that
# is written beside what a run took.
BY_FLOWS = {"stages/job/devices.py", "stages/judging/judge_attacks.jsonl", "stages/judging/judge_cases.jsonl"}


def check_opened(project: Path, name: str) -> set[str]:
    """Runs a stage and returns the files of stages/ that it opened; all of them must be watched."""
    stage, _, item = name.partition("@")
    arguments = [sys.executable, "-c", WATCH, stage, *([item] if item else [])]
    done = subprocess.run(arguments, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    opened = set(json.loads((project / ".ril" / "opened.json").read_text()))
    job = open_job(stage, item or None, project, load_params(project / "params.yaml"))
    watched = WatchedCode(project, stage, list_code_inputs(job))
    unwatched = {path for path in opened if not is_empty(project, Path(path))} - set(watched.code)
    assert unwatched <= BY_FLOWS
    return opened


def test_a_stage_opens_no_file_that_is_not_watched(make_project: Callable[..., Path]) -> None:
    opened = check_opened(make_project(SMALL), "questions")
    assert {"stages/questions.py", "stages/tiny/world_rows.py", "stages/tiny/world/pictures.py"} <= opened


@pytest.mark.slow
def test_stages_that_train_open_no_file_that_is_not_watched(make_project: Callable[..., Path]) -> None:
    project = make_project(SMALL)
    for name in ("questions", "model@student", "warm_start"):
        assert f"stages/{name.split('@')[0]}.py" in check_opened(project, name)
