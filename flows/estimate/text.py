"""The estimate as Markdown."""

from collections.abc import Iterable, Sequence

from flows.estimate.table import Estimate, GpuMemory

# Columns of the table, and the parts that each adds up.
COLUMNS: dict[str, tuple[str, ...]] = {
    "weights": ("weights",),
    "states": ("optimizer",),
    "grads": ("gradients", "buffers"),
    "ref.": ("reference",),
    "D": ("discriminator",),
    "passes": ("activations", "recomputation"),
    "head": ("head",),
    "vision": ("vision",),
    "engine": ("engine weights", "engine work"),
    "KV": ("KV cache",),
    "margin": ("margin",),
}


def format_memory(estimate: Estimate) -> str:
    """Returns the table of GB (1e9 bytes) a GPU, a row for each stage and kind of GPU."""
    lines = [f"| stage, phase | GPUs | {' | '.join(COLUMNS)} | sum |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row in estimate.rows:
        values = [sum(row.parts.get(part, 0.0) for part in parts) for parts in COLUMNS.values()]
        cells = [f"{value / 1e9:.1f}" if round(value / 1e9, 1) else "" for value in values]
        phase = "" if row.phase == "answers" and len(row.engines) == 1 else f", {row.phase}"
        lines.append(f"| {row.stage}{phase} | {format_gpus(row.gpus)} | {' | '.join(cells)} | {row.total / 1e9:.1f} |")
    return "\n".join(lines)


def format_gpus(gpus: Sequence[int]) -> str:
    """Returns consecutive numbers as ranges: 0, 2-7."""
    runs: list[list[int]] = []
    for gpu in gpus:
        if runs and gpu == runs[-1][-1] + 1:
            runs[-1].append(gpu)
        else:
            runs.append([gpu])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def format_engines(estimate: Estimate) -> str:
    """Returns a line on what the KV cache of each engine holds."""
    return "\n".join(_iter_engine_lines(estimate.rows))


def _iter_engine_lines(rows: Iterable[GpuMemory]) -> Iterable[str]:
    return dict.fromkeys(
        f"- {row.stage.partition(':')[0]}, {name}: {engine.cached_tokens:,} tokens, {engine.answers} answers of "
        f"{engine.context:,} tokens at once, prompt included"
        for row in rows
        for name, engine in row.engines.items()
    )
