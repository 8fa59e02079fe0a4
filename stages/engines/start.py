"""Selects and starts a model's engine: the one in `runtime.engines.<model>`, else vLLM in this process."""

import os

from stages.config.engines import GpuUse, OpenAi, Replay, Vllm, VllmServer
from stages.config.placement import count_replica_gpus, spans_machines
from stages.config.runtime import Runtime
from stages.engines.endpoint_engine import EndpointEngine
from stages.engines.engine import Engine, StartOptions, TrainableEngine
from stages.engines.null import NullEngine
from stages.engines.replay import explain_missing_answers
from stages.engines.vllm import VllmEngine
from stages.engines.vllm_server import VllmServerEngine
from stages.vlm.checkpoint import Checkpoint

ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # environment variables that torch reads


def find_label(checkpoint: Checkpoint) -> str:
    """Returns a checkpoint's entry of `models`: its folder in data/model; "student" for everything trained here."""
    return checkpoint.folder.name if checkpoint.folder.parent.name == "model" else "student"


def start_engine(checkpoint: Checkpoint, runtime: Runtime, options: StartOptions) -> Engine:
    """Starts and returns the engine of `checkpoint`.

    Raises MissingAnswers if the model's engine is `replay`, EngineError if a server does not start, BadWeights when
    weights that were trained here are not finite.
    """
    label = find_label(checkpoint)
    settings = runtime.find_engine(options.stage, label)
    if isinstance(settings, Replay):
        raise explain_missing_answers(label, options.missing)
    if isinstance(settings, OpenAi):
        return EndpointEngine(checkpoint, settings, label, options.served, options.spending)
    return _start_with_weights(checkpoint, runtime, settings, options, label, trainable=False)


def make_null_engine(checkpoint: Checkpoint) -> TrainableEngine:
    """Returns the engine of a rank that does not generate."""
    return NullEngine(checkpoint)


def start_trainable(checkpoint: Checkpoint, runtime: Runtime, options: StartOptions) -> TrainableEngine:
    """Starts the student's engine for training; raises ValueError if its weights cannot be replaced."""
    label = find_label(checkpoint)
    settings = runtime.find_engine(options.stage, label)
    if isinstance(settings, Replay | OpenAi) or (isinstance(settings, VllmServer) and settings.urls):
        raise ValueError(
            f"{runtime.find_engine_key(options.stage, label)} is {settings.kind!r}, but this model is in training and "
            "its engine gets new weights every step; take vllm, or a vllm_server that the stage starts (without urls)"
        )
    return _start_with_weights(checkpoint, runtime, settings, options, label, trainable=True)


def _start_with_weights(
    checkpoint: Checkpoint,
    runtime: Runtime,
    settings: Vllm | VllmServer,
    options: StartOptions,
    label: str,
    trainable: bool,
) -> TrainableEngine:
    if checkpoint.weights == checkpoint.folder:  # trained here; others are checked when they are pinned
        from stages.vlm.weights import check_files  # local import: stages with nothing to generate need no torch

        check_files(checkpoint.weights)
    check_allocator(settings, runtime.find_engine_key(options.stage, label))
    settings = assign_gpus(settings, options)
    if isinstance(settings, VllmServer):
        return VllmServerEngine(checkpoint, runtime, settings, options, label, trainable)
    return VllmEngine(checkpoint, runtime, settings, options.log_probs, options.adapter_rank)


def check_allocator(settings: Vllm | VllmServer, key: str) -> None:
    """Raises ValueError for an engine that sleeps where torch's allocator has expandable segments (trap T18).

    vLLM frees the memory through a pool of its own, which such segments do not work with. `key` names the engine.
    """
    for name in ALLOCATOR_SETTINGS if settings.sharing == "sleep" else ():
        if "expandable_segments:true" in os.environ.get(name, "").replace(" ", "").lower():
            raise ValueError(
                f"{key}.sharing is sleep, but {name}={os.environ[name]}: vLLM can't free memory of expandable "
                f"segments; unset {name}, or take sharing: memory"
            )


def assign_gpus(settings: Vllm | VllmServer, options: StartOptions) -> Vllm | VllmServer:
    """Returns `settings` with the GPUs of the engine: those that `options` or the settings name, else all.

    vLLM runs in this process only if it has exactly this process's GPUs and one replica fills them; otherwise it
    becomes servers with the same settings, one for each replica that the GPUs hold. Raises ValueError for a GPU that
    the stage does not see.
    """
    from stages.job.devices import list_devices, list_own_devices, name_devices

    if isinstance(settings, VllmServer) and (settings.urls or spans_machines(settings)):
        return settings
    gpus = (options.gpus or settings.gpus or tuple(range(len(list_devices())))) if list_devices() else ()
    if gpus:
        settings = settings.model_copy(update={"gpus": gpus})
    fits = len(gpus) <= count_replica_gpus(settings) and name_devices(gpus) == (list_own_devices() if gpus else [])
    if isinstance(settings, VllmServer) or (fits and not options.own_process):
        return settings
    shared = {name: getattr(settings, name) for name in GpuUse.model_fields}
    return VllmServer(kind="vllm_server", **shared)
