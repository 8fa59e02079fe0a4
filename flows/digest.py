"""What a file of code says, without its words: one short hash a function, method or module-level statement.

Words are what can be edited without changing a result: comments, formatting, docstrings, help texts (`HELP_ARGUMENTS`),
the order of imports, imports for type checkers. Two files with equal definitions compute the same.
Texts of errors, prompts and log lines are no words: they reach rejects, models and reports.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flows.closure import is_for_types
from stages.job.hashes import hash_json

HELP_ARGUMENTS: Mapping[str, frozenset[str]] = {  # keyword arguments that are help texts, by the name of what is called
    "Field": frozenset({"description", "title"}),
    "Option": frozenset({"help"}),
    "Argument": frozenset({"help"}),
    "Typer": frozenset({"help"}),
    "Switch": frozenset({"source", "departures"}),  # stages/config/switch.py: what docs/objectives.md says of a switch
    "Baseline": frozenset({"description", "source"}),
}
IMPORTS, ORDER, REST = "imports", "order of statements", "module"  # a module's imports, ..., statements without a name
_IMPORT = "import "
_MOVABLE = (_IMPORT, "FunctionDef", "AsyncFunctionDef")  # where these stand decides nothing
_DIGITS = 12  # of a hash that decides whether something changed: an accident in 2.8e14

Definitions = Mapping[str, str]  # by name; a method as Class.method
Code = Mapping[str, Definitions]  # by file


@dataclass(frozen=True, order=True)
class CodeChange:
    """One definition that is not as it was."""

    file: str
    name: str  # "" for a file as a whole
    what: str  # changed, added or removed

    def __str__(self) -> str:
        return f"{self.file}{f'::{self.name}' if self.name else ''} {self.what}"


def digest_files(root: Path, files: Iterable[Path]) -> Code:
    """The definitions of `files`, given relative to `root`; a file that is no Python is one definition, called "".

    Raises SyntaxError with the name of a file that can't be read.
    """
    return {file.as_posix(): _read(root, file) for file in sorted(files)}


def _read(root: Path, file: Path) -> Definitions:
    stat = (root / file).stat()
    return _read_at(root, file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _read_at(root: Path, file: Path, mtime_ns: int, length: int) -> Definitions:
    """Stages share most of their files; the stamp of a file is part of the key, so that an edit is read anew."""
    return digest_file((root / file).read_bytes(), file.as_posix())


def hash_code(code: Code) -> str:
    """One hash of all definitions."""
    return hash_json({file: dict(inside) for file, inside in code.items()})


def digest_file(content: bytes, file: str = "module.py") -> Definitions:
    """The definitions in the content of one file. Raises SyntaxError when it is Python that can't be read."""
    if not file.endswith(".py"):
        return {"": _hash_texts([hashlib.sha256(content).hexdigest()])}
    named = list(_iter_statements(ast.parse(content, file).body, ""))
    texts: dict[str, list[str]] = {}
    for name, text in named:
        texts.setdefault(name, []).append(text)
    found = {name: _hash_texts(sorted(set(text)) if name == IMPORTS else text) for name, text in texts.items()}
    order = [name for name, text in named if not text.startswith(_MOVABLE)]
    return {**found, ORDER: _hash_texts(order)} if len(order) > 1 else found


def compare_code(before: Code, now: Code) -> list[CodeChange]:
    """What differs between two states of code, sorted."""
    found: list[CodeChange] = []
    for file in before.keys() ^ now.keys():
        found.append(CodeChange(file, "", "added" if file in now else "removed"))
    for file in before.keys() & now.keys():
        old, new = before[file], now[file]
        names = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
        for name in names - {ORDER} or names:  # what comes or goes changes the order as well
            what = "added" if name not in old else "removed" if name not in new else "changed"
            found.append(CodeChange(file, name, what))
    return sorted(found)


def _iter_statements(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, str]]:
    """(name, canonical text) of each statement that is no word; of a class its methods, and the rest of it."""
    for node in body:
        match node:
            case _ if _is_word(node):
                continue
            case ast.If() if is_for_types(node):
                yield from _iter_statements(node.orelse, prefix)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                for alias in aliases:
                    yield (
                        prefix or IMPORTS,
                        f"{_IMPORT}{_canonical_text(node, without=('names',))} {_canonical_text(alias)}",
                    )
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield f"{prefix}.{name}" if prefix else name, _canonical_text(node)
            case ast.ClassDef(name=name):
                own = f"{prefix}.{name}" if prefix else name
                yield own, _canonical_text(node, without=("body",))
                yield from _iter_statements(node.body, own)
            case _:
                yield prefix or ", ".join(_list_bound_names(node)) or REST, _canonical_text(node)


def _list_bound_names(node: ast.stmt) -> list[str]:
    """Names that a module-level assignment binds."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [one.id for target in targets if target for one in ast.walk(target) if isinstance(one, ast.Name)]


def _is_word(node: ast.stmt) -> bool:
    """Whether a statement does nothing: a docstring, or `pass`, which stands where there is none."""
    match node:
        case ast.Pass() | ast.Expr(value=ast.Constant(value=str())):
            return True
        case _:
            return False


def _canonical_text(node: Any, without: Sequence[str] = ()) -> str:
    """Canonical text of a part of a syntax tree, without places in the file and without words.

    Empty fields are left out, so that a Python version that adds a field gives the same text.
    """
    match node:
        case ast.Constant(value=value):
            return f"{type(value).__name__}:{value!r}"
        case ast.AST():
            kept = {name: value for name, value in ast.iter_fields(node) if name not in without}
            if isinstance(node, ast.Call):
                kept["keywords"] = [one for one in node.keywords if one.arg not in _list_help_arguments(node.func)]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and "body" in kept:
                kept["body"] = [one for one in node.body if not _is_word(one)]
            inner = (
                f"{name}={_canonical_text(value)}" for name, value in kept.items() if value is not None and value != []
            )
            return f"{type(node).__name__}({', '.join(inner)})"
        case list():
            return f"[{', '.join(map(_canonical_text, node))}]"
        case _:
            return repr(node)


def _list_help_arguments(called: ast.expr) -> frozenset[str]:
    """Names of the keyword arguments that are help texts where `called` is called."""
    match called:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return HELP_ARGUMENTS.get(name, frozenset())
        case _:
            return frozenset()


def _hash_texts(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:_DIGITS]
