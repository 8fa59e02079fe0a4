"""Which stages are submitted as jobs, and how many GPUs each asks for."""

from flows.checks.gpus import count_claimed_gpus
from flows.environment import has_cpu_build
from flows.launcher import find_launcher, is_job
from flows.rank_processes import is_launched
from stages.config.engines import GpuUse, VllmServer
from stages.config.params import Params
from stages.config.placement import find_rank_gpus
from stages.config.table import STAGES
from stages.config.uses import list_used_models


def submits(params: Params, run: str) -> bool:
    """Whether `run` (such as `teacher@gpt`), started here, is to be submitted as a job; not if srun or torchrun has
    started it.
    """
    launcher = find_launcher(params.runtime)
    if launcher.kind == "local" or is_job() or is_launched():
        return False
    return launcher.stages == "all" or loads_model_here(params, run)


def loads_model_here(params: Params, run: str) -> bool:
    """Whether `run` loads a model on the machine where it runs: it trains, compares, or answers by an engine of its
    own, and by no endpoint, running server or stored answer.
    """
    stage, _, item = run.partition("@")
    if stage == "model":
        model = params.models[item]
        return model.build is not None or model.verified
    if stage == "discriminator":
        return params.objective.uses_discriminator
    return STAGES[stage].ranks or bool(_list_engines(params, run))


def _list_engines(params: Params, run: str) -> list[GpuUse]:
    """The engines that `run` starts."""
    stage = run.partition("@")[0]
    found = [params.runtime.find_engine(stage, model) for model in list_used_models(params, run)]
    return [one for one in found if isinstance(one, GpuUse) and not (isinstance(one, VllmServer) and one.urls)]


def count_job_gpus(params: Params, run: str) -> int:
    """Returns the GPUs that a job for `run` asks for.

    At least those that params.yaml names for it. Ranks without names have the first ones, one each, and an engine
    without names has all of `runtime.gpus`; where that is 0, one GPU, and with the CPU build none.
    """
    claimed, _ = count_claimed_gpus(params, run)
    seen = params.runtime.gpus or (0 if has_cpu_build() else 1)
    if not seen or not loads_model_here(params, run):
        return claimed
    stage = run.partition("@")[0]
    ranks = max(find_rank_gpus(params.runtime, stage)) + 1 if STAGES[stage].ranks else 0
    spread = any(not engine.gpus for engine in _list_engines(params, run))
    return max(claimed, ranks, seen if spread else 0, 1)
