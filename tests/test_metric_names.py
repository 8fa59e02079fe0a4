"""Names of metrics: whatever the report and the studies read is written by a stage, and nobody spells a name out."""

import ast
import re
from pathlib import Path

import pytest

from stages.job import metric_names

NAMES = {name: value for name, value in vars(metric_names).items() if name.isupper()}
READERS = ("stages/page/", "stages/report.py", "studies/")
HOME = "stages/job/metric_names.py"
# What a literal looks like that should be a constant of metric_names.
SPELLED_OUT = re.compile(r"(disc|rewards|judge|completions|kl|entropy|clip_ratio)/[\w{}/]*|frac_\w+|acc_\w*")


def named_in(tree: ast.AST) -> set[str]:
    """The constants of metric_names that stand in a piece of code, as `names.KL` or as `KL`."""
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found & NAMES.keys()


def written_in(tree: ast.Module) -> set[str]:
    """Those that it writes: as keys of a dictionary, or as the name of a mean over tokens."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.DictComp):
            keys = [node.key]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_by_source":
            keys = node.args[:1]
        else:
            continue
        found |= {name for key in keys for name in named_in(key)}
    return found


def spelled_out(tree: ast.Module) -> list[str]:
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [text for text in texts if SPELLED_OUT.fullmatch(text)]


@pytest.fixture
def code(root: Path) -> dict[str, ast.Module]:
    """The project's modules that know metrics, by path."""
    files = [*(root / "stages").rglob("*.py"), *(root / "studies").rglob("*.py")]
    texts = {str(file.relative_to(root)): file.read_text(encoding="utf-8") for file in sorted(files)}
    return {path: ast.parse(text) for path, text in texts.items() if path != HOME}


def test_what_is_read_is_written(code: dict[str, ast.Module]) -> None:
    knowing = {path: tree for path, tree in code.items() if "metric_names" in ast.dump(tree)}
    read = {path: named_in(tree) for path, tree in knowing.items() if path.startswith(READERS)}
    written = {name for path, tree in knowing.items() if not path.startswith(READERS) for name in written_in(tree)}
    assert len(read) >= 8
    assert {path: unknown for path, names in read.items() if (unknown := names - written)} == {}
    assert NAMES.keys() - written == set(), "nobody writes it"


def test_nobody_spells_a_name_out(code: dict[str, ast.Module]) -> None:
    assert {path: found for path, tree in code.items() if (found := spelled_out(tree))} == {}


def test_a_name_stands_for_one_thing() -> None:
    assert len(set(NAMES.values())) == len(NAMES)


def test_the_checks_can_fail() -> None:
    reader = ast.parse("x = row.get(names.KL_FAR), row[by_source(ENTROPY, side)]")
    assert named_in(reader) == {"KL_FAR", "ENTROPY"}
    assert written_in(reader) == set()
    writer = ast.parse("a = {names.KL_FAR: 1, names.LENGTH.format(s): 2}\nmeans.add_by_source(names.KL, v, b)")
    assert written_in(writer) == {"KL_FAR", "LENGTH", "KL"}
    assert written_in(ast.parse("a = {names.for_last_update(n): m[n] for n in (names.RATIO,)}")) == set()
    literals = 'a = "disc/passed", f"rewards/{x}/answer", f"disc/acc_{x}", "frac_reward_zero_std", "acc_student", "kl"'
    assert len(spelled_out(ast.parse(literals))) == 5


@pytest.mark.parametrize(
    ("column", "name", "source"),
    [
        ("rewards/student/similarity", metric_names.SIMILARITY, "student"),
        ("rewards/similarity", metric_names.SIMILARITY, None),
        ("rewards/a/answer", metric_names.SIMILARITY, None),
        ("disc/acc_qwen2_5_vl", metric_names.DISC_ACCURACY_OF, "qwen2_5_vl"),
        ("disc/acc", metric_names.DISC_ACCURACY_OF, None),
        ("kl/far/student", "kl/{}", None),
    ],
)
def test_the_source_of_a_column(column: str, name: str, source: str | None) -> None:
    assert metric_names.source_of(column, name) == source
