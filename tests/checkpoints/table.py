"""Prints which stage works with which realistic checkpoint.

    python -m tests.checkpoints.table Qwen2.5-VL-3B-Instruct InternVL3-8B-hf --ways one,ranks,lora --folder /tmp/table

A checkpoint is the student, and the teacher of itself; `Qwen2.5-7B-Instruct` judges. Each stage is run as DVC runs it.
Results are added to FOLDER/table.jsonl, so that a table can be made in parts. `--page` puts them into
docs/checkpoints.jsonl, and the table of all that is there into docs/checkpoints.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.checkpoints.make import PUBLISHED
from tests.checkpoints.smollm2 import SEEING
from tests.checkpoints.walk import ROOT, Project, StageRun, make_lora_params, make_params, make_two_rank_params

JUDGE = "Qwen2.5-7B-Instruct"
PAGE, RECORD = ROOT / "docs/checkpoints.md", ROOT / "docs/checkpoints.jsonl"
BEGIN, END = "<!-- table -->\n", "<!-- /table -->"
BEFORE = ("questions", "model@student", "model@judge", "selection")  # a refused checkpoint ends at once
SHOWN = (
    *("model@student", "teacher@itself", "warm_start", "verdict@itself", "rollout", "discriminator", "ril"),
    "evaluate@ril",
)
STAGES = (*BEFORE, *SHOWN[1:4], "pool", *SHOWN[4:])
TRAINING = ("warm_start", "discriminator", "ril")
WAYS: dict[str, dict[str, Any]] = {"one": {}, "ranks": make_two_rank_params(), "lora": make_lora_params()}
BACK: dict[str, dict[str, Any]] = {
    "one": {},
    "ranks": {"runtime": {"processes": 1, "zero_stage": 0}},
    "lora": {**{stage: {"lora": None} for stage in TRAINING[1:]}, "warm_start": {"lora": None, "freeze_vision": None}},
}


def try_checkpoint(name: str, folder: Path, ways: Sequence[str], project_folder: Path) -> Iterator[dict[str, Any]]:
    """Yields a row for each stage, first with one process; the other ways run only the stages that train."""
    checkpoints = folder / "checkpoints"
    # In another process: what this one holds counts as memory of the processes that it starts.
    command = [sys.executable, "-m", "tests.checkpoints.make", name, JUDGE, "--folder", str(checkpoints)]
    subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
    made, judge = (checkpoints / one for one in (name, JUDGE))
    params = make_params(made, {}, judge)
    params["verdict"] |= {"form": "plain", "constrained": False}  # a token for each verdict; smoke.py has the long form
    params["models"]["student"]["verify"] = False  # test_agreement.py compares engine and trainer
    project = Project(project_folder / "project", params)
    for way in ways:
        project.lay_over(WAYS[way])
        for stage in STAGES if way == "one" else TRAINING:
            run = project.run_stage(stage)
            row = make_row(name, way, run)
            yield {**row, "said": row["said"].replace(f"{checkpoints}/", "").replace(f"{project.folder}/", "")}
            if run.code:
                break
        project.lay_over(BACK[way])


def make_row(name: str, way: str, run: StageRun) -> dict[str, Any]:
    """Returns what table.jsonl holds of one run."""
    return {
        "checkpoint": name,
        "way": way,
        "stage": run.target,
        "code": run.code,
        "seconds": round(run.seconds, 1),
        "peak_gib": round(run.peak_gib, 2),
        "said": find_reason(run) if run.code else "",
    }


def find_reason(run: StageRun) -> str:
    """Returns the line that says why a stage failed: the last one with a word of failure, else the last."""
    lines = [line.strip() for line in run.said.splitlines() if line.strip()]
    failures = [line for line in lines if "error" in line.lower() or "Refused" in line]
    return (failures or lines or ["nothing"])[-1][:400]


def write_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table as Markdown: a line for each checkpoint and way, a column for each stage, then refusals."""
    last = {(row["checkpoint"], row["way"], row["stage"]): row for row in rows}
    lines = ["| checkpoint, way | " + " | ".join(stage.partition("@")[0] for stage in SHOWN) + " |"]
    lines.append("|---" * (len(SHOWN) + 1) + "|")
    for name, way in dict.fromkeys((row["checkpoint"], row["way"]) for row in rows):
        cells = [_write_cell(last.get((name, way, stage))) for stage in SHOWN]
        lines.append(f"| {name}, {way} | {' | '.join(cells)} |")
    refused = {f"{row['checkpoint']}, {row['stage']}: {row['said']}" for row in last.values() if row["code"]}
    told = [textwrap.fill(one, 120, initial_indent="- ", subsequent_indent="  ") for one in sorted(refused)]
    return "\n".join([*lines, *([""] if told else []), *told])


def _write_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return "refused" if row["code"] else f"{row['seconds']:.0f}, {row['peak_gib']:.1f}"


def read_rows(log: Path) -> list[dict[str, Any]]:
    """Returns the last row of each stage, checkpoint and way, in the order of the first of each."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    rows = map(json.loads, lines)
    return list({(row["checkpoint"], row["way"], row["stage"]): row for row in rows}.values())


def write_page(log: Path, record: Path = RECORD, page: Path = PAGE) -> None:
    """Adds the rows of `log` to `record`, and writes the table of both into `page`."""
    with record.open("a", encoding="utf-8") as out:
        out.write(log.read_text(encoding="utf-8"))
    rows = read_rows(record)
    record.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(f"{before}{BEGIN}{write_table(rows)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for and prints the table of all that is in FOLDER/table.jsonl."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of `python -m tests.checkpoints.make --list`")
    parser.add_argument("--ways", default="one", help="of one, ranks, lora; several with commas (default: one)")
    parser.add_argument("--folder", type=Path, required=True, help="of checkpoints and of table.jsonl")
    parser.add_argument("--page", action="store_true", help="add the results to docs/checkpoints.md")
    given = parser.parse_args(arguments)
    ways = given.ways.split(",")
    if unknown := [
        *(n for n in given.names if n not in (*PUBLISHED, SEEING)),
        *(way for way in ways if way not in WAYS),
    ]:
        parser.error(f"unknown: {', '.join(unknown)}")
    given.folder.mkdir(parents=True, exist_ok=True)
    log = given.folder / "table.jsonl"
    for name in given.names:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            for row in try_checkpoint(name, given.folder, ways, Path(folder)):
                with log.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    if given.page:
        write_page(log)
    print(write_table(read_rows(log)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
