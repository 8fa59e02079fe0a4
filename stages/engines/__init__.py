"""Text generation behind one small interface: requests go in, finished answers come out as they are ready."""

from stages.engines.engine import Answer, Engine, Request, RequestError
from stages.engines.vllm import VllmEngine

__all__ = ["Answer", "Engine", "Request", "RequestError", "VllmEngine"]
