"""A plan as a table for terminals of 100 columns, and as plain values for JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from flows.estimate.amounts import Range, format_flops, format_hours, format_volume
from flows.estimate.engines import EngineMemory
from flows.estimate.plan import PipelinePlan, StagePlan
from flows.estimate.table import Estimate, GpuMemory, format_gpus

# Columns of the table, and the parts that each adds up.
COLUMNS: dict[str, tuple[str, ...]] = {
    "weights": ("weights",),
    "states": ("optimizer", "copies"),
    "grads": ("gradients", "buffers"),
    "ref.": ("reference",),
    "D": ("discriminator",),
    "passes": ("activations", "recomputation", "vision"),
    "head": ("head",),
    "engine": ("engine weights", "engine work"),
    "KV": ("KV cache",),
    "margin": ("margin",),
}


def format_plan(plan: PipelinePlan, details: bool) -> str:
    """Returns what a person reads: a row for each run, memory by part, sums, and where the figures are from."""
    lines = [*_format_stages(plan), "", *_format_memory(plan), *_format_engines(plan.memory)]
    if details:
        lines += ["", *_format_details(plan)]
    return "\n".join([*lines, "", *_format_sums(plan), *_format_sources(plan)])


def _format_stages(plan: PipelinePlan) -> list[str]:
    where = "GPUs" if plan.card.gpu else "host"
    heads = ["stage", "state", where, "answers", "stored", "tokens in", "out", "disk", "time"]
    rows = [heads]
    for one in plan.stages:
        wanted, fresh = one.answers
        place = format_gpus(sorted({gpu for row in one.rows for gpu in row.gpus})) if plan.card.gpu else ""
        if not plan.card.gpu:
            place = format_volume(one.storage.host)
        stored = str(Range.exactly(wanted - fresh)) if wanted > fresh else ""
        asked = [str(Range.exactly(wanted)), stored] if wanted else ["", ""]
        told = [_add(each.tokens_in for each in one.work.answers), _add(each.tokens_out for each in one.work.answers)]
        tokens = [str(value) if fresh else "" for value in told]
        time = format_hours(one.hours.hours) if one.runs else ""
        rows.append([one.run, one.state, place, *asked, *tokens, _format_disk(one), time])
    return _align(rows)


def _format_disk(one: StagePlan) -> str:
    disk = one.storage.disk
    if disk.high < 5e4:
        return ""
    low, high = format_volume(disk.low), format_volume(disk.high)
    return high if low == high else f"{low.split()[0]}-{high}" if low.split()[1] == high.split()[1] else f"{low}-{high}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first two columns to the left, figures to the right. Empty columns go."""
    kept = [number for number in range(len(rows[0])) if any(row[number] for row in rows[1:])]
    widths = [max(len(row[number]) for row in rows) for number in kept]
    lines = []
    for row in rows:
        cells = [
            row[number].ljust(width) if number < 2 else row[number].rjust(width)
            for number, width in zip(kept, widths, strict=True)
        ]
        lines.append(" ".join(cells).rstrip())
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _format_memory(plan: PipelinePlan) -> list[str]:
    """Memory by part: of each GPU, or of each process, in the phase that needs most; equal rows once."""
    columns = {"libs": ("libraries",), **COLUMNS} if not plan.card.gpu else COLUMNS
    small = max(row.total for row in plan.memory.rows) < 10e9
    unit, name, digits = (1e6, "MB", 0) if small else (1e9, "GB", 1)
    size = f"{plan.card.memory / unit:,.{digits}f}"
    title = f"{name} on each GPU of {size}:" if plan.card.gpu else f"{name} of each process, on a machine with {size}:"
    rows = [["", "", *columns, "sum"]]
    for row in _join_equal(plan.memory.rows):
        values = [sum(row.parts.get(part, 0.0) for part in parts) / unit for parts in columns.values()]
        cells = [f"{value:.{digits}f}" if value >= 0.5 / 10**digits else "" for value in values]
        rows.append([_label(row), _name_place(row, plan.card.gpu), *cells, f"{row.total / unit:.{digits}f}"])
    return [title, *_align(rows)]


def _join_equal(given: Sequence[GpuMemory]) -> list[GpuMemory]:
    """Returns one row for the runs of a stage that take the same."""
    found: list[GpuMemory] = []
    for row in given:
        stage = row.stage.partition("@")[0]
        if found and found[-1].stage.partition("@")[0] == stage and found[-1].parts == row.parts and "@" in row.stage:
            found[-1] = replace(found[-1], stage=f"{stage}@*")
        else:
            found.append(row)
    return found


def _label(row: GpuMemory) -> str:
    phase = row.phase.replace("backward of the ", "")  # of the head, of the tower
    return f"{row.stage}, {phase}" if row.parts.get("weights") else row.stage


def _name_place(row: GpuMemory, gpu: bool) -> str:
    if gpu:
        return format_gpus(row.gpus)
    return f"x {len(row.gpus)}" if len(row.gpus) > 1 else ""


def _format_engines(estimate: Estimate) -> list[str]:
    """Returns a line on what the KV cache of one replica of each engine holds."""
    stages: dict[tuple[str, EngineMemory], list[str]] = {}
    for row in estimate.rows:
        for name, engine in row.engines.items():
            stages.setdefault((name, engine), []).append(row.stage.partition(":")[0])
    return [
        f"KV of {name} ({', '.join(dict.fromkeys(found))}): {engine.cached_tokens:,} tokens, "
        f"{engine.answers} requests of {engine.context:,}."
        for (name, engine), found in stages.items()
    ]


def _format_details(plan: PipelinePlan) -> Iterator[str]:
    for one in plan.stages:
        yield f"{one.run}:"
        yield f"    hours from: {one.hours.source}"
        if one.work.flops.high:
            flops = format_flops(one.work.flops)
            yield f"    {one.work.steps} training steps of {one.work.step_tokens} tokens, {flops} FLOP"
        kept = one.storage
        if kept.checkpoint:
            yield (
                f"    training state {format_volume(kept.checkpoint)}, {kept.seconds:.1f} s at 2 GB/s; on disk at most "
                f"{format_volume(kept.checkpoints)}"
            )
        yield f"    result {_format_range(kept.out)}, new answers in the store {_format_range(kept.store)}"
        yield f"    host memory {format_volume(kept.host)}"


def _format_range(value: Range) -> str:
    low, high = format_volume(value.low), format_volume(value.high)
    return high if low == high else f"{low} to {high}"


def _format_sums(plan: PipelinePlan) -> Iterator[str]:
    running = plan.to_run
    if not running:
        yield "Everything is up to date: nothing would run."
        return
    hours = _add(one.hours.hours for one in running)
    kept = _add(one.storage.kept for one in running) + Range.exactly(max(one.storage.checkpoints for one in running))
    wanted, fresh = (sum(one.answers[place] for one in running) for place in (0, 1))
    host = max(one.storage.host for one in running)
    yield (
        f"{len(running)} of {len(plan.stages)} stages would run: {format_hours(hours)} one after the other; "
        f"{fresh:,} answers,"
    )
    yield f"{wanted - fresh:,} stored; host memory {format_volume(host)}; disk {_format_range(kept)}."
    if plan.card.gpu:
        gpu_hours = _add(one.gpu_hours for one in running)
        yield f"GPU hours: {gpu_hours.low:,.0f} to {gpu_hours.high:,.0f}."
    yield from _format_money(plan)


def _format_money(plan: PipelinePlan) -> Iterator[str]:
    """The money of the stages whose prices were given, and the options that the others need."""
    running = plan.to_run
    total = _add(one.money for one in running if one.money is not None)
    if total.high:
        yield f"Money: {total.low:,.2f} to {total.high:,.2f}, at the prices given."
    remote = {each.model for one in running for each in one.work.answers if each.model not in plan.models}
    unpriced = sorted(name for name in remote if plan.prices.find(name) is None)
    options = ["--gpu-hour"] if plan.card.gpu and plan.prices.gpu_hour is None else []
    options += [f"--input-price and --output-price of {', '.join(unpriced)}"] if unpriced else []
    if options:
        yield f"Money{' beside that' if total.high else ''}: give {', and '.join(options)}."


def _format_sources(plan: PipelinePlan) -> Iterator[str]:
    for name, model in plan.models.items():
        yield f"{name}: {model.shape.weights / 1e6:,.1f} M weights, from {model.source}"
    sources = dict.fromkeys(one.hours.source for one in plan.to_run)
    told = f" Measured on this machine ({plan.machine})." if plan.machine else ""
    if plan.to_run:
        yield f"Times from {', '.join(sources)} ({plan.card.name}).{told}" + (
            "" if plan.machine or plan.card.gpu else " `ril plan --measure` measures this machine."
        )


def list_values(plan: PipelinePlan) -> dict[str, Any]:
    """Returns the plan as JSON values: bytes, tokens, hours; ranges as pairs."""
    return {
        "card": {"name": plan.card.name, "bytes": plan.card.memory, "gpu": plan.card.gpu},
        "machine": plan.machine,
        "models": {name: {"weights": one.shape.weights, "source": one.source} for name, one in plan.models.items()},
        "faults": [fault.text for fault in plan.memory.list_shortfalls()],
        "stages": [_list_stage(one) for one in plan.stages],
    }


def _list_stage(one: StagePlan) -> dict[str, Any]:
    wanted, fresh = one.answers
    return {
        "run": one.run,
        "state": one.state,
        "runs": one.runs,
        "gpus": one.gpus,
        "memory": [
            {"on": row.stage, "gpus": list(row.gpus), "phase": row.phase, "bytes": row.total, "parts": dict(row.parts)}
            | {
                "engines": {
                    name: {"cached_tokens": engine.cached_tokens, "answers": engine.answers, "context": engine.context}
                    for name, engine in row.engines.items()
                }
            }
            for row in one.rows
        ],
        "host_bytes": one.storage.host,
        "out_bytes": _pair(one.storage.out),
        "store_bytes": _pair(one.storage.store),
        "checkpoint_bytes": one.storage.checkpoint,
        "checkpoint_seconds": one.storage.seconds,
        "checkpoints_bytes": one.storage.checkpoints,
        "download_bytes": one.storage.download,
        "answers": {"wanted": wanted, "stored": wanted - fresh, "generate": fresh},
        "tokens_in": _pair(_add(each.tokens_in for each in one.work.answers)),
        "tokens_out": _pair(_add(each.tokens_out for each in one.work.answers)),
        "steps": one.work.steps,
        "flops": _pair(one.work.flops),
        "hours": _pair(one.hours.hours),
        "hours_from": one.hours.source,
        "gpu_hours": _pair(one.gpu_hours),
        "money": None if one.money is None else _pair(one.money),
    }


def _pair(value: Range) -> list[float]:
    return list(asdict(value).values())


def _add(ranges: Iterator[Range] | Sequence[Range]) -> Range:
    total = Range()
    for one in ranges:
        total += one
    return total
