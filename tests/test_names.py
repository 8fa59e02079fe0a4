"""One name has one meaning: no public function or class is defined in two modules, but for the exceptions here."""

import ast
from collections import defaultdict
from pathlib import Path
from types import FunctionType

from stages.vlm.family import Family

# Names that mean the same wherever they stand, or that nobody meets outside their module.
MEANT = {
    **{
        name: "a function of the contract that every family of models keeps"
        for name, value in vars(Family).items()
        if isinstance(value, FunctionType) and not name.startswith("_")
    },
    "read": "the reader of every data format (stages/corpora/formats)",
    "run": "what every stage file does; the commands `ril run` and `ril experiments run`",
    "main": "a program that is started by its module's name",
}


def modules_by_name(root: Path) -> dict[str, list[str]]:
    """The modules that define each public function or class."""
    found: dict[str, list[str]] = defaultdict(list)
    for part in ("flows", "stages", "studies"):
        for file in sorted((root / part).rglob("*.py")):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(str(file.relative_to(root)))
    return found


def test_a_public_name_is_defined_once(root: Path) -> None:
    twice = {name: files for name, files in modules_by_name(root).items() if len(files) > 1}
    new = {name: files for name, files in twice.items() if name not in MEANT}
    assert new == {}, "take another name, or give the reason in MEANT"
    assert MEANT.keys() - twice.keys() == set(), "no longer defined twice: take it out here"


def test_a_name_that_is_defined_twice_is_found(tmp_path: Path) -> None:
    for part in ("flows", "stages", "studies"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.py").write_text("def once_" + part + "(): ...\ndef twice(): ...\ndef _own(): ...\n")
    twice = {name: files for name, files in modules_by_name(tmp_path).items() if len(files) > 1}
    assert twice == {"twice": ["flows/a.py", "stages/a.py", "studies/a.py"]}


# Past participles without -ed. Words that are a base form as well (cut, put, read, run, set, split) are verbs.
IRREGULAR = {
    *(
        "bound",
        "broken",
        "built",
        "chosen",
        "done",
        "drawn",
        "found",
        "given",
        "gone",
        "held",
        "hidden",
        "kept",
        "known",
    ),
    *(
        "laid",
        "left",
        "lost",
        "made",
        "met",
        "paid",
        "said",
        "seen",
        "sent",
        "shown",
        "spoken",
        "stuck",
        "taken",
        "taught",
    ),
    *("thought", "told", "understood", "won", "written"),
}
BASE_FORMS = {"embed", "exceed", "feed", "need", "seed", "speed"}
QUANTITIES = {"balanced_accuracy", "hidden_states", "tiled_log_probs"}  # named as in the literature


def is_past_participle(name: str) -> bool:
    first = name.strip("_").split("_")[0]
    return first in IRREGULAR or (first.endswith("ed") and first not in BASE_FORMS)


def function_names(root: Path) -> dict[str, str]:
    """Functions and methods by name, with a file that has them; properties are read like fields and left out."""
    found = {}
    for part in ("flows", "stages", "studies"):
        for file in sorted((root / part).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not any(
                    "property" in ast.unparse(one) for one in node.decorator_list
                ):
                    found[node.name] = str(file.relative_to(root))
    return found


def test_functions_are_named_by_verbs(root: Path) -> None:
    names = function_names(root)
    assert len(names) > 1000
    assert {name: file for name, file in names.items() if is_past_participle(name) and name not in QUANTITIES} == {}
    assert not QUANTITIES - names.keys()


def test_past_participles_are_found() -> None:
    assert all(map(is_past_participle, ("gathered", "_told_apart", "drawn_rows")))
    assert not any(map(is_past_participle, ("read_rows", "seed_for", "run", "embed", "collect_drawn")))
