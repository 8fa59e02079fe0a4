"""Experiments side by side, from what `dvc exp show --json` says."""

from typing import Any

from flows.ui.compare import make_comparison_rows


def state(rev: str, rate: float, accuracy: float | None, **more: Any) -> dict[str, Any]:
    metrics = (
        {}
        if accuracy is None
        else {"reports/evaluate/ril/metrics.json": {"data": {"accuracy": accuracy, "tokens": 12.0}}}
    )
    params = {"params.yaml": {"data": {"ril": {"learning_rate": rate, "steps": 60}}}}
    return {"rev": rev, "data": {"timestamp": more.pop("time", None), "params": params, "metrics": metrics}, **more}


def test_each_run_says_what_was_changed_and_what_came_out() -> None:
    older = {"revs": [state("a1", 1e-3, 0.61234, name="older", time="2026-01-01T10:00:00")]}
    newer = {"revs": [state("a2", 2e-3, None, name="newer", time="2026-01-02T10:00:00")]}
    states = [state("workspace", 4e-4, 0.63), state("c0ffee", 4e-4, 0.63, name="main", experiments=[older, newer])]
    assert make_comparison_rows(states, [], ["ril: accuracy"]) == [
        {"run": "workspace", "when": "", "changed": "", "evaluate/ril: accuracy": 0.63},
        {
            "run": "newer",
            "when": "2026-01-02 10:00",
            "changed": "ril.learning_rate = 0.002",
            "evaluate/ril: accuracy": "",
        },
        {
            "run": "older",
            "when": "2026-01-01 10:00",
            "changed": "ril.learning_rate = 0.001",
            "evaluate/ril: accuracy": 0.6123,
        },
    ]
    assert [row["run"] for row in make_comparison_rows(states, ["older"], [])] == ["workspace", "older"]


def test_an_experiment_that_failed_has_a_row_without_figures() -> None:
    """DVC tells a state that it can't read as `error` in place of `data`."""
    broken = {"revs": [{"rev": "a3", "name": "broken", "error": {"msg": "unreadable"}}]}
    rows = make_comparison_rows(
        [state("workspace", 4e-4, 0.63), {"rev": "c0ffee", "data": None, "experiments": [broken]}], [], ["accuracy"]
    )
    assert [row["run"] for row in rows] == ["workspace", "broken"]
    assert rows[1]["changed"] == ""
