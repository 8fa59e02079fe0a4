"""Text generation behind one small interface: requests go in, finished answers come out as they are ready."""

from stages.engines.engine import Answer, ConcurrentEngine, Engine, EngineError, Request, RequestError, TrainableEngine
from stages.engines.replay import MissingAnswers
from stages.engines.start import Need, engine_elsewhere, start_engine, start_trainable
from stages.engines.vllm import VllmEngine

__all__ = [
    "Answer",
    "ConcurrentEngine",
    "Engine",
    "EngineError",
    "MissingAnswers",
    "Need",
    "Request",
    "RequestError",
    "TrainableEngine",
    "VllmEngine",
    "engine_elsewhere",
    "start_engine",
    "start_trainable",
]
