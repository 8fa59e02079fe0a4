"""What a stage declares: its row of the table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage."""

    name: str
    title: str  # what it does, for people
    params: tuple[str, ...]  # keys of params.yaml that it reads; `dvc.yaml` tracks the same
    inputs: tuple[str, ...]  # outs of other stages, and users' data
    items: str | None = None  # plural block of params.yaml with one run an entry
    loads_model: bool = True  # whether it takes one of `runtime.gpu_slots`
    ranks: bool = False  # whether it trains in `runtime.processes` processes
