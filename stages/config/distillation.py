"""Which models the student can be distilled from (`ril.objective: opd`)."""

from typing import TYPE_CHECKING

from stages.config.engines import Replay
from stages.config.model import TEXT_FAMILIES
from stages.config.placement import LOOP
from stages.config.plain import abbreviate

if TYPE_CHECKING:
    from stages.config.params import Params


def find_wrong_model(params: "Params") -> str | None:
    """Returns a line about an entry of `ril.distillation` that cannot score the student's answers; None without one.

    DVC makes the models of the pool's teachers before the loop, and no others. Tokenizers are compared when the models
    are there (`stages.vlm.shared_ids`).
    """
    if not params.objective.distils:
        return None
    named, key = params.ril.distillation, f"ril.objective is {params.ril.objective!r}, but ril.distillation"
    pooled = list(dict.fromkeys(params.teachers[name].model for name in params.pool.teachers))
    if not named:
        return f"{key} names no model; name some of {', '.join(pooled)}, the models of pool.teachers"
    for name in named:
        if name not in pooled or name == "student":
            return (
                f"{key} has {abbreviate(name)}, which is no model of pool.teachers, or the student; known: "
                f"{', '.join(pooled)}"
            )
        if lack := _find_lack(params.models[name].family):
            return f"{key} has {name!r}, which {lack}; name a model with weights that sees images"
        if isinstance(params.runtime.find_engine(LOOP, name), Replay):
            return (
                f"{key} has {name!r}, and {params.runtime.find_engine_key(LOOP, name)} is 'replay', which has no log "
                f"probabilities of new answers; set runtime.stage_engines.{LOOP}.{name} to vllm or vllm_server"
            )
    return None


def _find_lack(family: str) -> str:
    """Returns what a model of this family cannot do; "" if it can score."""
    if family in TEXT_FAMILIES:
        return f"is of family {family!r} and sees no images"
    if family == "remote":
        return "is an endpoint: it takes text and gives no log probabilities of the student's tokens"
    return ""
