"""What `python -m flows.run --help` says: the stages, and for one stage what it reads, writes and is told."""

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flows.closure import ROOT, find_reached_files
from stages.config.params import Params, load_params
from stages.config.table import STAGES
from stages.config.yaml import ParamsError


def describe_all() -> str:
    """Usage and a list of the stages."""
    width = max(len(_format_target(name)) for name in STAGES)
    rows = [f"  {_format_target(name).ljust(width)}  {stage.title}" for name, stage in STAGES.items()]
    return "\n".join(
        [
            "usage: python -m flows.run <stage> [item]        run one stage, once, here",
            "       python -m flows.run <stage> --help        what it reads, writes and is told",
            "",
            "`dvc repro` calls this for every stage that is out of date, in the right order, and records the result.",
            "With PREFECT_API_URL set and answering, the run is a Prefect flow run; else there is a progress bar.",
            "",
            "stages:",
            *rows,
        ]
    )


def describe_stage(name: str, root: Path) -> str:
    """What stage `name` reads and writes, and its parameters with their meaning and values (`root`/params.yaml)."""
    stage = STAGES[name]
    out = f"data/{name}/<id>" if stage.items else f"data/{name}"
    try:
        params, note = load_params(root / "params.yaml"), ""
    except ParamsError as error:
        params, note = None, f"values are not shown, because params.yaml can't be used: {error}"
    items: list[str | None] = list(getattr(params, stage.items)) if stage.items and params else [None]
    ids = (
        [f"  <id>        {', '.join(str(item) for item in items)} (entries of `{stage.items}`)"] if stage.items else []
    )
    reads = "reports/report/index.html" if name == "report" else f"{out}, reports{out.removeprefix('data')}"
    inputs = (_format_path(path, stage.items) for path in stage.inputs)
    own = [key for key in stage.params if key.split(".")[0] in (name, stage.items)]
    other = [key for key in stage.params if key not in own]
    return "\n".join(
        [
            f"usage: python -m flows.run {_format_target(name)}        (recorded: dvc repro "
            f"{name}{'@<id>' if ids else ''})",
            "",
            stage.title + ".",
            "",
            *ids,
            f"  reads       {', '.join(inputs) or 'no other stage'}",
            f"  writes      {reads}",
            f"  code        stages/{name}.py and {', '.join(list_parts(name))}",
            "",
            "parameters (params.yaml):",
            *(line for key in own for line in _describe_key(key, params, items)),
            *([f"  and from the whole file: {', '.join(_format_key(key) for key in other)}"] if other else []),
            *([note] if note else []),
        ]
    )


def list_parts(stage: str) -> list[str]:
    """The parts of `stages/` that a stage reaches."""
    reached = (path.parts for path in find_reached_files(ROOT, f"stages.{stage}"))
    return sorted({f"stages/{parts[1]}" for parts in reached if len(parts) > 2})


def _format_target(name: str) -> str:
    return f"{name} <id>" if STAGES[name].items else name


def _format_key(key: str) -> str:
    return key.replace("{item}", "<id>")


def _format_path(path: str, items: str | None) -> str:
    """`data/model/{block.model}` as `data/model/<teachers.<id>.model>`."""
    text = path.replace("{item}", "<id>").replace("{block.", f"{{{items}.<id>.").replace("{params.", "{")
    return text.replace("{", "<").replace("}", ">")


def _describe_key(key: str, params: Params | None, items: list[str | None]) -> Iterator[str]:
    root = key.split(".")[0]
    kind = _find_block(Params.model_fields[root].annotation)
    if kind is None:
        yield f"  {_format_key(key)}"
        return
    for field, description, path in _iter_fields(kind):
        values = [_find_value(params, root, item, path) for item in items] if params else []
        shown = [f"{item}: {value}" if item else str(value) for item, value in zip(items, values, strict=False)]
        distinct = [str(values[0])] if values and len(set(map(str, values))) == 1 else shown
        yield f"  {_format_key(key)}.{field} = {', '.join(distinct)}" if distinct else f"  {_format_key(key)}.{field}"
        yield f"      {description}"


def _iter_fields(kind: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Dotted name, description and path of every field, those of inner blocks included."""
    for name, info in kind.model_fields.items():
        path = (*prefix, name)
        inner = _find_block(info.annotation)
        if inner is not None:
            yield from _iter_fields(inner, path)
        else:
            yield ".".join(path), info.description or "", path


def _find_block(annotation: Any) -> type[BaseModel] | None:
    """The block class in `Block`, `Block | None` or `dict[str, Block]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (types.UnionType, typing.Union, dict):
        return next((block for part in typing.get_args(annotation) if (block := _find_block(part))), None)
    return None


def _find_value(params: Params, root: str, item: str | None, path: tuple[str, ...]) -> Any:
    value: Any = getattr(params, root)
    for part in path if item is None else (item, *path):
        value = value[part] if isinstance(value, dict) else getattr(value, part, None)
    return value
