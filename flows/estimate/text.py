"""The estimate as Markdown."""

from flows.estimate.engines import EngineMemory
from flows.estimate.storage import Storage
from flows.estimate.table import Estimate, format_gpus

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
        phase = f", {row.phase}" if row.parts.get("weights") else ""  # an engine alone has one phase
        lines.append(f"| {row.stage}{phase} | {format_gpus(row.gpus)} | {' | '.join(cells)} | {row.total / 1e9:.1f} |")
    return "\n".join(lines)


def format_engines(estimate: Estimate) -> str:
    """Returns a line on what the KV cache of each engine holds."""
    stages: dict[tuple[str, EngineMemory], list[str]] = {}
    for row in estimate.rows:
        for name, engine in row.engines.items():
            stages.setdefault((name, engine), []).append(row.stage.partition(":")[0])
    lines = [
        f"- KV cache of {name} ({', '.join(dict.fromkeys(found))}): {engine.cached_tokens:,} tokens a replica, "
        f"{engine.answers} requests of {engine.context:,} tokens."
        for (name, engine), found in stages.items()
    ]
    return "\n".join(lines)


def format_storage(storage: Storage) -> str:
    """Returns a line on host memory and disk."""
    host, one, kept = (value / 1e9 for value in (storage.host, storage.checkpoint, storage.disk))
    return (
        f"- Host memory {host:.0f} GB. A training state of the loop has {one:.1f} GB, {storage.seconds:.0f} s at "
        "2 GB/s;\n"
        f"  those that are kept and the trained models take {kept:.0f} GB of disk."
    )
