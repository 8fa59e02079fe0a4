"""`ril plan`: what a run will take, before it starts."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.environment import store_folder
from flows.estimate.calibrate import calibrate
from flows.estimate.cards import Card, find_card, read_gpus
from flows.estimate.models import find_models
from flows.estimate.plan import Given, PipelinePlan, Prices, plan_pipeline
from flows.estimate.profiles import find_profile_card
from flows.estimate.remedy import Remedy, find_larger_card, find_remedies
from flows.estimate.show import format_plan, list_values
from flows.estimate.status import add_states
from flows.estimate.workload import MeanLengths
from flows.profile import read_profile
from stages.config.engines import GpuUse
from stages.config.params import Params, validate_params
from stages.config.placement import count_replica_gpus
from stages.config.runtime import Runtime
from stages.config.yaml import ParamsError, merge_params, read_yaml
from stages.job.failure import Failure

plan_app = typer.Typer()


@plan_app.command("plan")
def plan_command(
    profile: Annotated[str | None, typer.Option(help="PipelinePlan with this profile laid over params.yaml.")] = None,
    card: Annotated[
        str | None, typer.Option(help="GPU: 24, 48, 80, 141 (GB), l4, a10g, rtx4090, a100, l40s, h100, h200.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many GPUs, in place of runtime.gpus.")] = None,
    gpu_hour: Annotated[float | None, typer.Option("--gpu-hour", min=0.0, help="Price of a GPU hour.")] = None,
    input_price: Annotated[
        list[str] | None,
        typer.Option("--input-price", help="Price of a million prompt tokens of endpoints: 0.5, or judge=0.5."),
    ] = None,
    output_price: Annotated[
        list[str] | None, typer.Option("--output-price", help="The same for tokens of answers.")
    ] = None,
    prompt_tokens: Annotated[
        float | None, typer.Option(min=1.0, help="Mean tokens of your questions, images included, if you know it.")
    ] = None,
    answer_tokens: Annotated[float | None, typer.Option(min=1.0, help="Mean tokens of an answer.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="First measure this machine, in about two minutes; later plans use it.")
    ] = False,
    details: Annotated[bool, typer.Option("--details", help="Also training states, results and FLOP.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON: bytes, tokens, hours.")] = False,
) -> None:
    """Says what each stage will take: memory of each GPU by part, disk, answers, tokens, hours, money. Runs nothing.

    Times are ranges. Exit code 1 if something does not fit; then the smallest changes that would are listed.
    """
    root = Path.cwd()
    if measure:
        try:
            calibrate(store_folder(root), lambda said: print(said, file=sys.stderr))
        except Failure as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
    values = read_yaml(root / "params.yaml")
    source = "params.yaml"
    if profile is not None:
        values, source = merge_params(values, read_profile(root, profile)), f"params.yaml with profile {profile}"
    found = _choose_card(values, card, root, profile)
    if found is not None:
        count = gpus or values.get("runtime", {}).get("gpus") or len(read_gpus()) or count_named(values)
        values = merge_params(values, {"runtime": {"gpus": count}})
    params = validate_params(values, source)
    given = Given(
        root,
        store_folder(root),
        find_models(root, params),
        found,
        MeanLengths(prompt_tokens, answer_tokens),
        Prices(
            gpu_hour,
            _read_prices(input_price, params, "prompt_price"),
            _read_prices(output_price, params, "completion_price"),
        ),
    )
    plan = add_states(plan_pipeline(params, given), root, given.store, as_planned=profile is None)
    faults = plan.memory.list_shortfalls()
    remedies = find_remedies(values, given, faults) if faults else []
    if as_json:
        told: dict[str, Any] = list_values(plan)
        print(json.dumps({**told, "remedies": [remedy.changes for remedy in remedies]}, indent=2))
    else:
        print(format_plan(plan, details))
        _print_faults(plan, remedies, params, given)
    raise typer.Exit(bool(faults))


def _print_faults(plan: PipelinePlan, remedies: Sequence[Remedy], params: Params, given: Given) -> None:
    faults = plan.memory.list_shortfalls()
    if not faults:
        return
    print()
    for fault in faults:
        print(f"does not fit: {fault}")
    for remedy in remedies:
        print(f"would fit: {remedy}")
    larger = find_larger_card(params, given)
    if larger is not None:
        print(f"would fit: as it is, on GPUs of {larger} GB")
    if not remedies and larger is None:
        print("no changes that were tried make it fit: take smaller models, or more or larger GPUs (--gpus, --card)")


def _choose_card(values: dict[str, Any], named: str | None, root: Path, profile: str | None) -> Card | None:
    """The GPU that is named, or is here, or that the profile is for; None for a machine without.

    A student in fp32, as that of the tiny profile, is planned as on a CPU: on GPUs it is not measured, and is tiny.
    """
    if named is not None:
        return find_card(named)
    if values.get("models", {}).get("student", {}).get("precision", "bf16") == "fp32":
        return None
    if here := read_gpus():
        return min(here, key=lambda one: one.memory)
    if profile is not None and (size := find_profile_card(root, profile)):
        return find_card(size)
    if not values.get("runtime", {}).get("gpus"):
        return None
    raise ParamsError(
        f"runtime.gpus is {values['runtime']['gpus']}, but this machine shows no GPU; say which the others have: "
        "--card 80"
    )


def count_named(values: Mapping[str, Any]) -> int:
    """Returns how many GPUs parameters without `runtime.gpus` need: those that they name, and one for each rank."""
    runtime = Runtime.model_validate(values.get("runtime", {}))
    named = [gpu for gpus in runtime.rank_gpus.values() for gpu in gpus]
    for _, _, engine in runtime.iter_engines():
        if isinstance(engine, GpuUse):
            named += [*engine.gpus, count_replica_gpus(engine) * (getattr(engine, "replicas", None) or 1) - 1]
    return max([runtime.processes, *(gpu + 1 for gpu in named)])


def _read_prices(given: Sequence[str] | None, params: Params, key: str) -> dict[str, float]:
    """Returns prices by entry of `models`, "" for all: those that are given, else those of `runtime.engines`."""
    found = {}
    for one in given or ():
        name, _, price = one.rpartition("=")
        if name and name not in params.models:
            raise ParamsError(f"price {one!r}: no model {name!r}; models: {', '.join(params.models)}")
        try:
            found[name] = float(price)
        except ValueError:
            raise ParamsError(f"price {one!r}: write a number, or MODEL=NUMBER") from None
        if not found[name] >= 0:
            raise ParamsError(f"price {one!r} is below 0")
    if "" in found:
        return found
    stated = {name: getattr(engine, key, None) for name, engine in params.runtime.engines.items()}
    return {name: price for name, price in stated.items() if price is not None} | found
