"""What `ril plan` says of the runs that `plan_measured` measured, in two tables: memory and bytes; work and seconds.

The plan is made as before the first run: without reports, with the calibration alone. Mean lengths of prompts and
answers are those that were measured, since no plan can know them.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.estimate.amounts import Range
from flows.estimate.models import find_models
from flows.estimate.plan import Given, StagePlan, plan_pipeline
from flows.estimate.workload import MeanLengths
from stages.config.params import load_params
from tests.performance.plan_measured import ANSWERED, CASES, write_params

ALLOWED = 0.10  # of memory and bytes
EXACT = ("teacher", "rollout")  # stages whose answers and tokens follow from the parameters
Row = Mapping[str, Any]


def compare(root: Path) -> bool:
    """Prints both tables; whether memory and bytes are at most 10 % off, counts exact, times within their range."""
    rows = [json.loads(line) for line in (root / "measured.jsonl").read_text(encoding="utf-8").splitlines()]
    plans = [predict(root, row, rows) for row in rows]
    print("| precision, settings | stage | memory, MB | off by | checkpoint, MB | result, MB |")
    print("|---|---|---|---|---|---|")
    worst = max(_print_memory(row, plan) for row, plan in zip(rows, plans, strict=True))
    print("\n| precision, settings | stage | answers | tokens in | tokens out | store, kB | seconds |")
    print("|---|---|---|---|---|---|---|")
    right = [_print_work(row, plan) for row, plan in zip(rows, plans, strict=True)]
    return worst <= ALLOWED and all(right)


def predict(root: Path, row: Row, rows: list[Row]) -> StagePlan:
    """Returns the plan of a measured run, as if nothing had run in its project."""
    folder = root / row["precision"]
    case = next((one for one in CASES[row["precision"]] if one.name == row["case"]), None)
    write_params(folder, row["precision"], case.changes if case else {})
    params = load_params(folder / "params.yaml")
    with tempfile.TemporaryDirectory() as bare:
        for name in ("data", "params.yaml"):
            (Path(bare) / name).symlink_to(folder / name)
        given = Given(Path(bare), root / "calibration", find_models(folder, params), lengths=find_lengths(row, rows))
        return plan_pipeline(params, given, only=row["stage"]).find(row["stage"])


def find_lengths(row: Row, rows: list[Row]) -> MeanLengths:
    """Returns the mean lengths of a run: those it paid for, else those of the student's own answers."""
    paid = list(_iter_paid(row)) or [
        one
        for other in rows
        if other["stage"] == "rollout" and other["precision"] == row["precision"]
        for one in _iter_paid(other)
    ]
    first = paid[0]  # of the loop: the student's samples
    prompts = first["generated"] / (2 if row["stage"] in ANSWERED or not list(_iter_paid(row)) else 1)
    return MeanLengths(first["prompt_tokens"] / prompts, first["completion_tokens"] / first["generated"])


def _iter_paid(row: Row) -> Iterator[Row]:
    for one in row["timing"].get("paid", {}).values():
        if one.get("generated"):
            yield one


def _print_memory(row: Row, plan: StagePlan) -> float:
    """Prints a row of the first table and returns the largest difference in it."""
    memory = row["timing"]["took"]["peak_host_bytes"]
    off = plan.rows[0].total / memory - 1
    pairs = [(row["checkpoint"], plan.storage.checkpoint), (row["out"], plan.storage.out.high)]
    cells = [
        f"{measured / 1e6:,.2f}, {planned / 1e6:,.2f}" if measured and planned else "" for measured, planned in pairs
    ]
    print(
        f"| {row['precision']}, {row['case']} | {row['stage']} | {memory / 1e6:,.0f}, {plan.rows[0].total / 1e6:,.0f} "
        f"| {100 * off:+.0f} % | {' | '.join(cells)} |"
    )
    return max([abs(off), *(abs(planned / found - 1) for found, planned in pairs if found and planned)])


def _print_work(row: Row, plan: StagePlan) -> bool:
    """Prints a row of the second table; whether exact counts are met and the time is within its range."""
    paid, hours = list(_iter_paid(row)), plan.hours.hours
    cells, right = ["", "", "", ""], 3600 * hours.low <= row["timing"]["seconds"] <= 3600 * hours.high
    if paid:
        asked = plan.work.answers
        measured = [sum(one[key] for one in paid) for key in ("generated", "prompt_tokens", "completion_tokens")]
        exact = row["stage"].partition("@")[0] in EXACT
        planned = [
            Range.exactly(sum(one.fresh for one in asked)),
            Range(sum(one.tokens_in.low for one in asked), sum(one.tokens_in.high for one in asked)),
            Range(sum(one.tokens_out.low for one in asked), sum(one.tokens_out.high for one in asked)),
        ]
        told = [f"{round(one.high):,}" if exact else str(one) for one in planned]
        cells = [f"{a:,}, {b}" for a, b in zip(measured, told, strict=True)]
        cells.append(f"{row['store'] / 1e3:.1f}, {plan.storage.store.high / 1e3:.1f}" if row["store"] else "")
        if exact:
            stored = abs(plan.storage.store.high / row["store"] - 1) <= ALLOWED
            right = right and measured == [round(one.high) for one in planned] and stored
    seconds = f"{row['timing']['seconds']:.0f}, {3600 * hours.low:.0f} to {3600 * hours.high:.0f}"
    print(f"| {row['precision']}, {row['case']} | {row['stage']} | {' | '.join(cells)} | {seconds} |")
    return right
