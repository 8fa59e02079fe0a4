"""The declaration of a stage: a row of the table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage."""

    name: str
    title: str  # description for people
    params: tuple[str, ...]  # keys of params.yaml that it reads; `dvc.yaml` tracks the same keys
    inputs: tuple[str, ...]  # outs of other stages, and users' data
    # (path with {}, property of Params with what stands there): inputs by a list, which dvc.yaml cannot have. Each must
    # come from a stage before one of `inputs`, so that DVC makes it first.
    listed: tuple[tuple[str, str], ...] = ()
    items: str | None = None  # plural block of params.yaml with one run per entry
    loads_model: bool = True  # whether it takes one of `runtime.gpu_slots`
    ranks: bool = False  # whether it trains in `runtime.processes` processes
