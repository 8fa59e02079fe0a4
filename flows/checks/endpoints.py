"""Keys of endpoints: whether the variables that params.yaml names are set. Their values are never shown."""

import os
from collections.abc import Iterator, Sequence

from flows.checks.finding import Finding
from stages.config.engines import OpenAi
from stages.config.params import Params
from stages.config.uses import list_used_models


def list_endpoints(params: Params, runs: Sequence[str]) -> dict[str, tuple[OpenAi, list[str]]]:
    """Returns the endpoints that `runs` ask, by the key of their settings, with these runs."""
    found: dict[str, tuple[OpenAi, list[str]]] = {}
    for run in runs:
        stage = run.partition("@")[0]
        for model in list_used_models(params, run):
            engine = params.runtime.find_engine(stage, model)
            if isinstance(engine, OpenAi):
                found.setdefault(params.runtime.find_engine_key(stage, model), (engine, []))[1].append(run)
    return found


def check_keys(params: Params, runs: Sequence[str]) -> Iterator[Finding]:
    """Yields each variable with a key that `runs` need: whether it is set."""
    variables: dict[str, tuple[list[str], list[str]]] = {}
    for key, (engine, names) in list_endpoints(params, runs).items():
        if engine.api_key is not None:
            keys, needing = variables.setdefault(engine.api_key, ([], []))
            keys.append(f"{key}.api_key")
            needing += names
    for variable, (keys, needing) in variables.items():
        stages = tuple(dict.fromkeys(needing))
        if os.environ.get(variable):
            yield Finding("key", "fine", variable, f"is set ({', '.join(keys)})", "", stages)
        else:
            yield Finding(
                "key",
                "missing",
                variable,
                f"is not set, and {', '.join(keys)} names it",
                f"export {variable}=...",
                stages,
            )
