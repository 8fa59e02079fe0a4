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
    "hub_sample": "each benchmark reads the rows of its own data set",
    "tsv_sample": "each benchmark reads the rows of its own file",
    "lmms_prompt": "each benchmark's prompt in lmms-eval",
    "grade": "each harness has its own rule for the same",
    "choice": "each harness has its own rule for the same",
    "export_command": "`ril export` and `ril store export`",
    "import_command": "`ril import` and `ril store import`",
    "serve": "the command `ril serve` and what it does",
    "status": "the command `ril status` and what DVC says of the same",
    "accept": "the command `ril accept` and what it does",
    "compare": "the command `ril compare` and the form of that name",
}
TO_BE_RENAMED = {
    *("Asked", "Change", "Counts", "Difference", "Discriminator", "Experiment", "Picture", "Plan", "Prompt"),
    *("Question", "Record", "Reject", "Reply", "Row", "Stream", "Verdict", "Wanted", "Words"),
    *("ask_judge", "asked", "asked_of", "changes", "chosen", "compared", "difference", "export", "fitting"),
    *("in_words", "interleaved", "is_right", "listed", "lmms_mmmu", "mean", "number", "opened", "ours", "outcomes"),
    *("plain", "planned", "read_record", "reference", "rows_of", "said", "save_weights", "settings"),
    *("shortened", "student", "table", "verdicts", "words", "write_record"),
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
    new = {name: files for name, files in twice.items() if name not in MEANT and name not in TO_BE_RENAMED}
    assert new == {}, "take another name, or give the reason in MEANT"
    assert (MEANT.keys() | TO_BE_RENAMED) - twice.keys() == set(), "no longer defined twice: take it out here"


def test_a_name_that_is_defined_twice_is_found(tmp_path: Path) -> None:
    for part in ("flows", "stages", "studies"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.py").write_text("def once_" + part + "(): ...\ndef twice(): ...\ndef _own(): ...\n")
    twice = {name: files for name, files in modules_by_name(tmp_path).items() if len(files) > 1}
    assert twice == {"twice": ["flows/a.py", "stages/a.py", "studies/a.py"]}
