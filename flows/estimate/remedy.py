"""The smallest changes of parameters with which everything fits, each tried with the estimate itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from flows.estimate.cards import CARDS
from flows.estimate.plan import Given, estimate_memory
from flows.estimate.table import Shortfall
from stages.config.engines import GpuUse
from stages.config.params import Params, validate_params
from stages.config.yaml import ParamsError, merge_params

MOST_SHOWN = 5
MOST_STEPS = 6  # changes together
SMALLEST_PACK = 1024
TRAINING = ("warm_start", "discriminator", "ril")
ADAPTER = {"rank": 64, "alpha": 128.0}


@dataclass(frozen=True)
class Remedy:
    """Changes of parameters, as a profile would have them, and what they cost in words."""

    changes: Mapping[str, Any]
    costs: tuple[str, ...]

    def __str__(self) -> str:
        keys = ", ".join(f"{key}: {_format(value)}" for key, value in _list_keys(self.changes))
        told = f" ({'; '.join(self.costs)})" if any(self.costs) else ""
        return f"{keys}{told}"


def find_remedies(values: Mapping[str, Any], given: Given, faults: Sequence[Shortfall]) -> list[Remedy]:
    """Returns what makes everything fit, the least change of results and speed first; none if nothing tried does.

    Single changes are tried first, then pairs, then changes on top of each other while each helps.
    """
    tried = list(_list_candidates(validate_params(values), faults))
    alone = [one for one in tried if _measure(values, one.changes, given) == 0]
    if alone:  # of changes of the same keys the smallest
        return list({tuple(key for key, _ in _list_keys(one.changes)): one for one in reversed(alone)}.values())[::-1][
            :MOST_SHOWN
        ]
    helpful = [one for one in tried if _measure(values, one.changes, given) < _count(faults)]
    pairs = []
    for one, other in combinations(helpful, 2):
        both = _join(one, other)
        if both is not None and _measure(values, both.changes, given) == 0:
            pairs.append(both)
            if len(pairs) == MOST_SHOWN:
                break
    return pairs or _add_up(values, helpful, given, faults)


def find_larger_card(params: Params, given: Given) -> str | None:
    """Returns the gigabytes of the smallest GPUs on which everything fits as it is; None if it fits none of them."""
    if given.card is None:
        return None
    for name, card in CARDS.items():
        if name.isdigit() and not estimate_memory(params, replace(given, card=card)).list_shortfalls():
            return name
    return None


def _add_up(
    values: Mapping[str, Any], tried: Sequence[Remedy], given: Given, faults: Sequence[Shortfall]
) -> list[Remedy]:
    """Changes on top of each other, each time the one after which least is lacking."""
    found, lacking = Remedy({}, ()), _count(faults)
    for _ in range(MOST_STEPS):
        steps = [joined for one in tried if (joined := _join(found, one)) is not None]
        if not steps:
            return []
        best = min(steps, key=lambda one: _measure(values, one.changes, given))
        left = _measure(values, best.changes, given)
        if left >= lacking:
            return []
        found, lacking = best, left
        if not left:
            return [found]
    return []


def _measure(values: Mapping[str, Any], changes: Mapping[str, Any], given: Given) -> float:
    """How much is lacking with `changes`: 0 if everything fits; infinite for parameters that are refused."""
    try:
        params = validate_params(merge_params(dict(values), dict(changes)))
    except ParamsError:
        return float("inf")
    return _count(estimate_memory(params, given).list_shortfalls())


def _count(faults: Sequence[Shortfall]) -> float:
    """Bytes that are lacking, with a gigabyte for each fault that has no bytes."""
    return sum(max(fault.lacking, 1e9) for fault in faults)


def _join(one: Remedy, other: Remedy) -> Remedy | None:
    """Both changes; None if they set a key twice."""
    if {key for key, _ in _list_keys(one.changes)} & {key for key, _ in _list_keys(other.changes)}:
        return None
    costs = tuple(dict.fromkeys((*one.costs, *other.costs)))
    return Remedy(merge_params(dict(one.changes), dict(other.changes)), costs)


def _list_candidates(params: Params, faults: Sequence[Shortfall]) -> Iterator[Remedy]:
    """Changes that may help, from those that cost nothing to those that change what is learned."""
    runtime = params.runtime
    stages = [stage for stage in TRAINING if any(fault.stage.startswith(stage) for fault in faults)]
    if stages:
        if not runtime.gradient_checkpointing:
            yield _set("a quarter more time in training", runtime={"gradient_checkpointing": True})
        bucket = {"zero_optimization": {"reduce_bucket_size": 100_000_000}}
        yield _set("", runtime={"deepspeed": bucket})
        if runtime.zero_stage < 3 and any(runtime.count_ranks(stage) > 1 for stage in stages):
            yield _set("weights are gathered for each layer", runtime={"zero_stage": 3})
        for stage in stages:
            for divisor in (2, 4, 8):
                tokens = getattr(params, stage).tokens_per_pack // divisor
                if tokens >= SMALLEST_PACK:
                    yield Remedy({stage: {"tokens_per_pack": tokens}}, ("more passes a step",))
        for place in ("sharded", "offloaded"):
            yield _set("the reference comes over the link", runtime={"reference": place})
        for place in ("swapped", "offloaded"):
            slower = "states are copied in each update" if place == "swapped" else "AdamW on the CPU"
            yield _set(slower, runtime={"optimizer_states": place, "zero_stage": max(1, runtime.zero_stage)})
    yield from _list_engine_changes(params, faults)
    yield from _list_more_gpus(params, stages)
    for stage in stages:
        if getattr(params, stage).lora is None:
            more = {} if stage == "discriminator" else {"freeze_vision": True}
            changes: dict[str, Any] = {stage: {"lora": ADAPTER, **more}}
            if stage in ("ril", "discriminator") and runtime.reference != "replicated":
                changes["runtime"] = {"reference": "replicated"}
            yield Remedy(changes, ("adapters in place of all weights; raise the learning rate tenfold",))
    if len([stage for stage in stages if getattr(params, stage).lora is None]) > 1:
        yield Remedy(
            {
                stage: {"lora": ADAPTER, **({} if stage == "discriminator" else {"freeze_vision": True})}
                for stage in TRAINING
                if getattr(params, stage).lora is None
            },
            ("adapters in place of all weights; raise the learning rate tenfold",),
        )


def _list_engine_changes(params: Params, faults: Sequence[Shortfall]) -> Iterator[Remedy]:
    runtime = params.runtime
    if any("ril" in fault.stage for fault in faults):
        engines = runtime.stage_engines.get("ril", {})
        shares = {name: engine.memory_share for name, engine in engines.items() if isinstance(engine, GpuUse)}
        for factor in (0.75, 0.5):
            less = {name: {"memory_share": round(share * factor, 2)} for name, share in shares.items() if share}
            if less:
                yield _set("fewer answers at a time", runtime={"stage_engines": {"ril": less}})
    for share in (0.9, 0.8, 0.7):
        if share != runtime.gpu_memory_utilization:
            yield _set("", runtime={"gpu_memory_utilization": share})
    for name in {
        word for fault in faults for word in params.models if f" {word} " in fault.text or word in fault.stage
    }:
        engine = runtime.engines.get(name)
        size = getattr(engine, "tensor_parallel", 1)
        for more in (2, 4):
            if size * more <= max(1, runtime.gpus):
                yield _set(
                    "fewer replicas",
                    runtime={"engines": {name: {"kind": "vllm_server", "tensor_parallel": size * more}}},
                )
        context = params.models[name].context_tokens
        yield Remedy(
            {"models": {name: {"context_tokens": context // 2}}}, ("longer questions are rejected; answers are new",)
        )
    if runtime.kv_cache_gib > 1 and not runtime.gpus:
        yield _set("fewer answers at a time", runtime={"kv_cache_gib": max(1, runtime.kv_cache_gib // 2)})


def _list_more_gpus(params: Params, stages: Sequence[str]) -> Iterator[Remedy]:
    """One GPU more for the ranks of the stages that lack memory."""
    runtime = params.runtime
    for stage in stages:
        named = runtime.rank_gpus.get(stage, ())  # type: ignore[call-overload]
        ranks = list(named or range(runtime.processes))
        if runtime.gpus:
            changes = {"gpus": runtime.gpus + 1, "rank_gpus": {stage: [*ranks, runtime.gpus]}}
            yield _set("one GPU more", runtime={**changes, "zero_stage": 3})


def _set(cost: str, **changes: Any) -> Remedy:
    return Remedy(changes, (cost,) if cost else ())


def _list_keys(changes: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        if isinstance(value, Mapping) and key != "lora":
            yield from _list_keys(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _format(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {one}" for key, one in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
