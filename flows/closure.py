"""Which files a stage can reach by importing: what DVC has to watch for it.

Imports are read from the source, those inside functions included; nothing is imported. Importing a module runs the
`__init__` of every package above it. A package that is imported itself, as in `from stages.benchmarks import specs`,
stands for all its files.
"""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the code that is running
OURS = ("stages", "flows", "studies")
READ_BY_NAME = (".py", ".jsonl", ".html", ".css", ".js", ".json")  # read or run by a module of the same folder


def reached_files(root: Path, module: str) -> set[Path]:
    """All files of this project that `module` reaches, itself included, as paths relative to `root`."""
    found: set[Path] = set()
    waiting = [_file(root, module)]
    while waiting:
        file = waiting.pop()
        if file in found or file is None:
            continue
        found.add(file)
        waiting += imported_files(root, file)
        beside = _read_beside(root, file)
        waiting += [path for path in beside if path.suffix == ".py"]
        found |= {path for path in beside if path.suffix != ".py"}
    return found


@cache
def imported_files(root: Path, file: Path) -> tuple[Path, ...]:
    """The project's files that `file` imports directly, with the `__init__` files above them."""
    files: set[Path] = set()
    for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [name for alias in node.names for name in (node.module, f"{node.module}.{alias.name}")]
        else:
            continue
        for name in names:
            if name.split(".")[0] in OURS:
                files |= _files_of(root, name, whole=name != getattr(node, "module", None))
    return tuple(sorted(files))


def _files_of(root: Path, name: str, whole: bool) -> set[Path]:
    file = _file(root, name)
    if file is None:
        return set()
    parts = file.parent.parts
    found = {Path(*parts[: depth + 1], "__init__.py") for depth in range(len(parts))}
    found = {init for init in found if (root / init).is_file()}
    if whole and file.name == "__init__.py":
        found |= {path.relative_to(root) for path in (root / file.parent).glob("*.py")}
    return found | {file}


def _file(root: Path, name: str) -> Path | None:
    path = Path(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if (root / file).is_file():
            return file
    return None


@cache
def _read_beside(root: Path, file: Path) -> frozenset[Path]:
    """Data files beside `file` whose names stand in it as a literal."""
    beside = [path for path in (root / file).parent.iterdir() if path.suffix in READ_BY_NAME and path.name != file.name]
    if not beside:
        return frozenset()
    text = (root / file).read_text(encoding="utf-8")
    return frozenset(path.relative_to(root) for path in beside if f'"{path.name}"' in text)


def dependencies(root: Path, module: str) -> list[str]:
    """`reached_files`, with a folder in place of its files where all of them are reached."""
    reached = reached_files(root, module)
    found: set[str] = set()
    for file in reached:
        place = file
        for folder in list(file.parents)[:-2]:  # below stages/, flows/
            inside = {
                p.relative_to(root) for p in (root / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts
            }
            if {path for path in inside if not is_empty(root, path)} <= reached:
                place = folder
        if place != file or not is_empty(root, file):
            found.add(place.as_posix())
    return sorted(found)


@cache
def is_empty(root: Path, file: Path) -> bool:
    """Whether an `__init__` file holds nothing but its docstring, so that no change of it can change a result."""
    if file.name != "__init__.py":
        return False
    body = ast.parse((root / file).read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def code_dependencies(root: Path, stage: str) -> list[str]:
    """What `dvc.yaml` lists as the code of `stage`: all that it reaches but `stages/tiny`.

    Tiny code is watched where parameters ask for it (`${world.code}`, `${questions.path}`, ...), so that it never makes
    a real run stale.
    """
    return [path for path in dependencies(root, f"stages.{stage}") if not path.startswith("stages/tiny/")]


def with_code_dependencies(root: Path, text: str) -> str:
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
            lines += [f"{' ' * (indent + 2)}- {path}" for path in code_dependencies(root, stage)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from stages.job.files import write_text

    file = Path.cwd() / "dvc.yaml"
    write_text(file, with_code_dependencies(Path.cwd(), file.read_text(encoding="utf-8")))
