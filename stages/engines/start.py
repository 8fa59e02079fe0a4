"""Which engine a model gets: `runtime.engines.<model>`, else vLLM in this process."""

from stages.config.engines import OpenAi, Replay, Vllm, VllmServer
from stages.config.runtime import Runtime
from stages.engines.endpoint_engine import EndpointEngine
from stages.engines.engine import Engine, StartOptions, TrainableEngine
from stages.engines.null import NullEngine
from stages.engines.replay import explain_missing_answers
from stages.engines.vllm import VllmEngine
from stages.engines.vllm_server import VllmServerEngine
from stages.vlm.checkpoint import Checkpoint


def find_label(checkpoint: Checkpoint) -> str:
    """Entry of `models` that a checkpoint belongs to: its folder in data/model; everything trained here is the
    student.
    """
    return checkpoint.folder.name if checkpoint.folder.parent.name == "model" else "student"


def start_engine(checkpoint: Checkpoint, runtime: Runtime, options: StartOptions) -> Engine:
    """The engine of `checkpoint`, started.

    Raises MissingAnswers where the model's engine is the store alone, EngineError when a server does not come up.
    """
    label = find_label(checkpoint)
    settings = runtime.engines.get(label) or Vllm(kind="vllm")
    if isinstance(settings, Replay):
        raise explain_missing_answers(label, options.missing)
    if isinstance(settings, OpenAi):
        return EndpointEngine(checkpoint, settings, label)
    return _start_with_weights(checkpoint, runtime, settings, options, label, trainable=False)


def make_null_engine(checkpoint: Checkpoint) -> TrainableEngine:
    """For a rank without engines."""
    return NullEngine(checkpoint)


def start_trainable(checkpoint: Checkpoint, runtime: Runtime, options: StartOptions) -> TrainableEngine:
    """The engine of the student in training; ValueError when its settings name one whose weights can't be replaced."""
    label = find_label(checkpoint)
    settings = runtime.engines.get(label) or Vllm(kind="vllm")
    if isinstance(settings, Replay | OpenAi) or (isinstance(settings, VllmServer) and settings.urls):
        raise ValueError(
            f"runtime.engines.{label} is {settings.kind!r}, but this model is in training and its engine gets "
            "new weights every "
            "step; take vllm, or a vllm_server that the stage starts (without urls)"
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
    if isinstance(settings, Vllm) and options.own_process:
        settings = VllmServer(
            kind="vllm_server", sequences=settings.sequences, tensor_parallel=settings.tensor_parallel
        )
    if isinstance(settings, VllmServer):
        return VllmServerEngine(checkpoint, runtime, settings, options, label, trainable)
    return VllmEngine(checkpoint, runtime, settings.sequences, settings.tensor_parallel)
