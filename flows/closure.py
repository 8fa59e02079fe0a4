"""Which files a stage can reach: what DVC watches for it.

    python -m flows.closure        rewrites the code dependencies in dvc.yaml

Imports are read from the source, those inside functions included; nothing is imported. What counts:

- `import a.b`, `from a import b`, relative imports; importing a module also runs the `__init__` of every package above
  it. A package that is imported as an object (`from stages.benchmarks import specs`) stands for all its files, because
  `pkgutil` can list them.
- A string that is the name of a module (`import_module("stages.x")`, `[python, "-m", "stages.x"]`). A computed name is
  an error, unless the module also imports a package as an object (the registry of benchmarks does).
- Where a module reads its own place (`__file__`): all data files of its folder and of its subfolders that are not
  packages (templates, styles, JSON lines), and the `.py` files of its folder that it names in a string.
- `if TYPE_CHECKING:` does not count. It never runs, so no change behind it can change a result.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeGuard

import yaml

ROOT = Path(__file__).resolve().parents[1]  # the code that is running
OWN_PACKAGES = ("stages", "flows", "studies")
TINY_PART = Path("stages", "tiny")  # watched where parameters ask for it
_MODULE = re.compile(rf"({'|'.join(OWN_PACKAGES)})(\.\w+)+")


class ComputedImport(ValueError):
    """A module is imported by a computed name, so what it reaches can't be read; the message says where."""


@dataclass(frozen=True)
class _Named:
    """What one source file names; a function of its text and of its own module name alone."""

    modules: tuple[tuple[str, bool], ...]  # name, and whether it may be a package that stands for all its files
    own_folder: bool  # whether it reads its own place
    literals: frozenset[str]  # strings that end in ".py"
    computed: int | None  # line of an import by a computed name


def find_reached_files(root: Path, module: str) -> set[Path]:
    """All files of this project that `module` reaches, itself included, as paths relative to `root`.

    Raises ComputedImport.
    """
    found: set[Path] = set()
    waiting = sorted(_find_files(root, module, whole=False))
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            if file.suffix == ".py":
                waiting += find_named_files(root, file)
    return found


def find_named_files(root: Path, file: Path) -> set[Path]:
    """The project's files that `file` imports, runs or reads directly, with the `__init__` files above them.

    Raises ComputedImport.
    """
    stat = (root / file).stat()
    named = _read_names(root, file, stat.st_mtime_ns, stat.st_size)
    files: set[Path] = set()
    packages = 0
    for name, whole in named.modules:
        reached = _find_files(root, name, whole)
        packages += whole and _is_package(root, name)
        files |= reached
    if named.computed and not packages:
        raise ComputedImport(
            f"{file}, line {named.computed}: imports a module by a computed name, so nobody can say what it reaches; "
            "import the package that holds these modules as well (from stages.x import package)"
        )
    if named.own_folder:
        files |= set(_find_data_beside(root, file))
        files |= {path for name in named.literals if (root / (path := file.with_name(name))).is_file()}
    return files


@lru_cache(maxsize=4096)
def _read_names(root: Path, file: Path, mtime_ns: int, length: int) -> _Named:
    """Reads `file`; the stamp of the file is part of the key, so that an edit is read anew."""
    modules: dict[tuple[str, bool], None] = {}
    own_folder, literals, computed = False, set[str](), None
    for node in _iter_running_nodes(ast.parse((root / file).read_bytes(), str(file))):
        match node:
            case ast.Import(names=aliases):
                modules |= dict.fromkeys((alias.name, True) for alias in aliases)
            case ast.ImportFrom(module=origin, names=aliases, level=level):
                package = file.parts[: len(file.parts) - level] if level else ()
                base = ".".join([*package, *([origin] if origin else [])])
                modules[base, False] = None
                modules |= dict.fromkeys((f"{base}.{alias.name}", True) for alias in aliases)
            case ast.Constant(value=str(text)):
                if _MODULE.fullmatch(text):
                    modules[text, True] = None
                elif text.endswith(".py"):
                    literals.add(text)
            case ast.Name(id="__file__"):
                own_folder = True
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[name, *_]):
                if called in ("import_module", "__import__") and not isinstance(name, ast.Constant):
                    computed = node.lineno
            case _:
                pass
    ours = tuple((name, whole) for name, whole in modules if name.split(".")[0] in OWN_PACKAGES)
    return _Named(ours, own_folder, frozenset(literals), computed)


def _iter_running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers read."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        inner = node.orelse if is_for_types(node) else ast.iter_child_nodes(node)
        waiting += inner


def is_for_types(node: ast.AST) -> TypeGuard[ast.If]:
    """Whether this is an `if TYPE_CHECKING:`."""
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            return True
        case _:
            return False


def _find_files(root: Path, name: str, whole: bool) -> set[Path]:
    """The file of module `name` and the `__init__` files above it; of a package, if `whole`, all its modules."""
    file = _find_file(root, name)
    if file is None:
        return set()
    found = {Path(*file.parts[:depth], "__init__.py") for depth in range(1, len(file.parts))}
    found = {init for init in found if (root / init).is_file()}
    if whole and file.name == "__init__.py":
        found |= {path.relative_to(root) for path in (root / file.parent).rglob("*.py")}
    return found | {file}


def _is_package(root: Path, name: str) -> bool:
    return (root / Path(*name.split(".")) / "__init__.py").is_file()


def _find_file(root: Path, name: str) -> Path | None:
    path = Path(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if (root / file).is_file():
            return file
    return None


def _find_data_beside(root: Path, file: Path) -> Iterator[Path]:
    """Files other than Python in the folder of `file` and in those below it that are no packages."""
    waiting = [(root / file).parent]
    while waiting:
        for path in _iter_visible(waiting.pop()):
            if path.is_dir() and not (path / "__init__.py").is_file():
                waiting.append(path)
            elif path.is_file() and path.suffix != ".py":
                yield path.relative_to(root)


def _iter_visible(folder: Path) -> Iterator[Path]:
    """What Python and editors leave behind is left out."""
    return (path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__pycache__")


def _iter_files(folder: Path) -> Iterator[Path]:
    for path in _iter_visible(folder):
        if path.is_dir():
            yield from _iter_files(path)
        else:
            yield path


def list_dependencies(root: Path, module: str) -> list[str]:
    """`find_reached_files`, with a folder in place of its files where all of them are reached."""
    reached = find_reached_files(root, module)
    found: set[str] = set()
    for file in reached:
        place = file
        for folder in list(file.parents)[:-2]:  # below stages/, flows/
            inside = {path.relative_to(root) for path in _iter_files(root / folder)}
            if {path for path in inside if not is_empty(root, path)} <= reached:
                place = folder
        if place != file or not is_empty(root, file):
            found.add(place.as_posix())
    return sorted(found)


def is_empty(root: Path, file: Path) -> bool:
    """Whether an `__init__` file holds nothing but its docstring, so that no change of it can change a result."""
    if file.name != "__init__.py":
        return False
    body = ast.parse((root / file).read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def list_code_dependencies(root: Path, stage: str) -> list[str]:
    """What `dvc.yaml` lists as the code of `stage`: all that it reaches but `stages/tiny`.

    Tiny code is watched where parameters ask for it (`${world.code}`, `${questions.path}`, ...), so that it never makes
    a real run stale.
    """
    found = list_dependencies(root, f"stages.{stage}")
    return [path for path in found if not Path(path).is_relative_to(TINY_PART)]


def find_unlisted_files(root: Path, stage: str) -> list[str]:
    """Files that `stage` reaches and that dvc.yaml does not list for it, neither themselves nor by a folder.

    None for a stage that somebody took out of dvc.yaml: DVC does not run it.
    """
    declared = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"].get(stage)
    if declared is None:
        return []
    listed = [*declared.get("do", declared)["deps"], TINY_PART]
    files = sorted(find_reached_files(root, f"stages.{stage}"))
    bare = [file for file in files if not any(file.is_relative_to(path) for path in listed)]
    return [str(file) for file in bare if not is_empty(root, file)]


def update_code_dependencies(root: Path, text: str) -> str:
    """The text of `dvc.yaml` with every stage's code brought up to date, all else as it was."""
    lines: list[str] = []
    stage, in_deps = "", False
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if indent == 2 and line.rstrip().endswith(":") and not line.lstrip().startswith("#"):
            stage, in_deps = line.strip()[:-1], False
        if in_deps and line.lstrip().startswith("- stages/"):
            continue
        in_deps = line.strip() == "deps:" or (in_deps and line.lstrip().startswith("- "))
        lines.append(line)
        if line.strip() == "deps:":
            lines += [f"{' ' * (indent + 2)}- {path}" for path in list_code_dependencies(root, stage)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from stages.job.files import write_text

    file = Path.cwd() / "dvc.yaml"
    write_text(file, update_code_dependencies(Path.cwd(), file.read_text(encoding="utf-8")))
