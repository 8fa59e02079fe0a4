"""The form `compare_experiments`: experiments side by side, each with what was changed for it and what came out."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from flows.dvc import repro as dvc
from flows.ui.plan import check_project
from stages.config.yaml import ParamsError, flatten
from stages.job.metric_names import VALIDATION

COMMITS = 20  # how far back experiments are looked for
DEFAULT_METRICS = ("evaluate/ril: accuracy", "evaluate/warm_start: accuracy", f"ril: {VALIDATION}.end")
_METRICS_HELP = "Words: a metric is shown whose name has one of them. Names are like `evaluate/ril: accuracy`."
_EXPERIMENTS_HELP = "Names of experiments; none: all of the last 20 commits. The workspace is always there."


@flow(name="compare", persist_result=False)
def compare_experiments(
    root: str,
    experiments: Annotated[list[str], Field(title="Experiments", description=_EXPERIMENTS_HELP)] = [],  # noqa: B006
    metrics: Annotated[list[str], Field(title="Metrics", description=_METRICS_HELP)] = [*DEFAULT_METRICS],  # noqa: B006
) -> State[Any]:
    """Puts experiments side by side, the newest first: what was changed for each against the workspace, and what came
    out.

    Args:
        root: Folder of the project that the form was made for; the run refuses to work in another.
        experiments: Names; none for all.
        metrics: Words; a metric is shown whose name has one of them.
    """
    try:
        check_project(root)
        states = dvc.list_experiments(Path.cwd(), COMMITS)
    except (ParamsError, dvc.DvcFailed) as error:
        return Failed(message=str(error))
    rows = make_comparison_rows(states, experiments, metrics)
    if unknown := set(experiments) - {row["run"] for row in rows}:
        return Failed(
            message=f"no experiment {', '.join(sorted(unknown))} in the last {COMMITS} commits; see: dvc exp list -A"
        )
    create_table_artifact(
        rows, key="compare", description="Experiments: what was changed against the workspace, and what came out"
    )
    return Completed(message=f"{len(rows) - 1} experiments beside the workspace, in the table under Artifacts")


def make_comparison_rows(
    states: Sequence[Mapping[str, Any]], names: Sequence[str], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for the workspace and for each experiment, the newest first, from what `dvc exp show --json` says.

    A metric that a run lacks is an empty cell; a column stands for each metric that some run has.
    """
    found = [dict(entry) for entry in _iter_entries(states)]
    own = [entry for entry in found if entry.get("rev") == "workspace"]
    others = [
        entry for entry in found if entry.get("name") and entry.get("rev") != "workspace" and entry.get("experiment")
    ]
    others = [entry for entry in others if not names or entry["name"] in names]
    others.sort(key=lambda entry: str(_read_data(entry).get("timestamp") or ""), reverse=True)
    ordered = own[:1] + others
    here = _flatten_entry("params", own[0]) if own else {}
    scores = [
        {key: value for key, value in _flatten_entry("metrics", entry).items() if any(word in key for word in metrics)}
        for entry in ordered
    ]
    columns = sorted({key for score in scores for key in score})
    rows = []
    for entry, score in zip(ordered, scores, strict=True):
        params = _flatten_entry("params", entry)
        changed = [
            f"{key} = {params.get(key)}"
            for key in sorted({*params, *here} if params else ())
            if params.get(key) != here.get(key)
        ]
        row = {
            "run": entry.get("name") or entry["rev"],
            "when": str(_read_data(entry).get("timestamp") or "")[:16].replace("T", " "),
        }
        rows.append({**row, "changed": ", ".join(changed), **{key: _format_cell(score.get(key)) for key in columns}})
    return rows


def _iter_entries(states: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for state in states:
        yield {**state}
        for experiment in state.get("experiments") or []:
            for revision in experiment.get("revs") or []:
                yield {**revision, "experiment": True}


def _read_data(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return entry.get("data") or {}


def _flatten_entry(kind: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """`params` or `metrics` of an entry by dotted name; a metric's name begins with its folder below reports/."""
    flat: dict[str, Any] = {}
    for file, content in (_read_data(entry).get(kind) or {}).items():
        start = "" if kind == "params" else f"{'/'.join(Path(file).parts[1:-1])}: "
        flat.update({start + key: value for key, value in flatten(content.get("data") or {}).items()})
    return flat


def _format_cell(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else "" if value is None else value
