"""Which GPUs the ranks and the engines of stage `ril` have, and who may share one.

GPUs are numbers counted among those that the stage sees (CUDA_VISIBLE_DEVICES). In other stages nothing is shared:
ranks train alone, and engines run one after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from stages.config.engines import GpuUse, VllmServer
from stages.config.runtime import Runtime

LOOP = "ril"


@dataclass(frozen=True)
class Placement:
    """GPUs of the ranks in rank order, and of the engine of each model that runs on this machine."""

    ranks: tuple[int, ...]
    engines: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Claim:
    who: str  # for messages
    key: str  # of the parameter that names its GPUs
    gpus: tuple[int, ...]
    use: GpuUse | None  # None: the ranks


def find_rank_gpus(runtime: Runtime, stage: str) -> tuple[int, ...]:
    """Returns the GPU of each rank of a training stage on the machine of the first rank."""
    named = runtime.rank_gpus.get(stage, ())  # type: ignore[call-overload]
    return named or tuple(range(runtime.processes))


def find_gpu_use(runtime: Runtime, stage: str, model: str) -> GpuUse | None:
    """Returns the engine's settings if it has GPUs of this machine, None for endpoints, running servers and Ray."""
    settings = runtime.find_engine(stage, model)
    if not isinstance(settings, GpuUse) or (isinstance(settings, VllmServer) and settings.urls):
        return None
    return None if spans_machines(settings) else settings


def spans_machines(settings: GpuUse) -> bool:
    """Whether Ray chooses the GPUs of the engine, among those of its cluster."""
    return isinstance(settings, VllmServer) and "ray" in settings.args and not settings.gpus


def count_replica_gpus(settings: GpuUse) -> int:
    """Returns the number of GPUs that one replica spans."""
    return settings.tensor_parallel * (settings.pipeline_parallel if isinstance(settings, VllmServer) else 1)


def place_loop(runtime: Runtime, judge: str | None, count: int, teachers: Sequence[str] = ()) -> Placement:
    """Returns the GPUs of stage `ril`; `judge` is the judge's entry of `models`, None without one.

    `teachers` are the entries of models that score the student's answers (`ril.objective: opd`).

    `count` is the number of GPUs, 0 if it is not known: then only engines with named GPUs are placed. An engine without
    named GPUs gets those that nobody else has: the judge one replica at the end, each teacher one before it, the
    student all others. One that shares gets all but those of engines that do not. Raises ValueError for a GPU that
    does not exist, and for one that is claimed twice without a declared way of sharing, with both claims.
    """
    uses = {
        model: use
        for model in [*([judge] if judge else []), *teachers, "student"]
        if (use := find_gpu_use(runtime, LOOP, model)) is not None
    }
    ranks = find_rank_gpus(runtime, LOOP)
    placed = {model: use.gpus for model, use in uses.items() if use.gpus}
    for model, use in uses.items():
        if model not in placed and count:
            others = {other: gpus for other, gpus in placed.items() if other != model}
            placed[model] = _choose_gpus(use, ranks, [(uses[other], gpus) for other, gpus in others.items()], count)
            if model != "student":
                placed[model] = placed[model][-_count_wanted(use) :]
    claims = [_Claim(f"the {len(ranks)} ranks of stage {LOOP}", f"runtime.rank_gpus.{LOOP}", ranks, None)]
    for model, gpus in placed.items():
        key = runtime.find_engine_key(LOOP, model)
        claims.append(_Claim(f"the engine of {model} ({key})", f"{key}.gpus", gpus, uses[model]))
    for claim in claims:
        _check_size(claim, count)
    _check_claims(claims, runtime.gpu_memory_utilization)
    return Placement(ranks, placed)


def _choose_gpus(
    use: GpuUse, ranks: tuple[int, ...], others: list[tuple[GpuUse, tuple[int, ...]]], count: int
) -> tuple[int, ...]:
    """Returns the GPUs of an engine that names none: whole replicas of what is left, else the first GPUs."""
    shares = use.sharing != "none"
    taken = set() if shares else set(ranks)
    for other, gpus in others:
        taken |= set() if shares and other.sharing != "none" else set(gpus)
    free = [gpu for gpu in range(count) if gpu not in taken]
    whole = len(free) - len(free) % count_replica_gpus(use)
    return tuple(free[:whole]) or tuple(range(min(count, _count_wanted(use))))


def _count_wanted(use: GpuUse) -> int:
    replicas = use.replicas if isinstance(use, VllmServer) else 1
    return count_replica_gpus(use) * (replicas or 1)


def _check_size(claim: _Claim, count: int) -> None:
    if count and (beyond := [gpu for gpu in claim.gpus if gpu >= count]):
        raise ValueError(
            f"{claim.who} has GPU {beyond[0]}, but there are {count}, numbered from 0; change {claim.key}, or "
            "runtime.gpus if there are more"
        )
    if claim.use is not None and len(claim.gpus) < _count_wanted(claim.use):
        raise ValueError(
            f"{claim.who} needs {_count_wanted(claim.use)} GPUs and has {len(claim.gpus)}; give it more in "
            f"{claim.key}, or lower its replicas, tensor_parallel or pipeline_parallel"
        )


def _check_claims(claims: list[_Claim], default_share: float) -> None:
    """Raises ValueError for a GPU that is claimed twice without a declared way of sharing, or beyond its memory."""
    for one, other in combinations(claims, 2):
        if both := sorted(set(one.gpus) & set(other.gpus)):
            alone = [claim for claim in (one, other) if claim.use is not None and claim.use.sharing == "none"]
            if alone:
                raise ValueError(
                    f"GPU {both[0]} is claimed by {one.who} and by {other.who}, and no way of sharing is declared "
                    f"for {alone[0].who}; give one of them other GPUs ({one.key}, {other.key}), or let the engine "
                    f"share: {alone[0].key.removesuffix('.gpus')}.sharing sleep or memory, with memory_share"
                )
    for gpu in sorted({gpu for claim in claims for gpu in claim.gpus}):
        here = [claim for claim in claims if gpu in claim.gpus and claim.use is not None]
        total = sum(claim.use.memory_share or default_share for claim in here if claim.use is not None)
        if total > 1:
            raise ValueError(
                f"GPU {gpu}: {' and '.join(claim.who for claim in here)} take {total:g} of its memory; lower "
                "memory_share, or gpu_memory_utilization"
            )
