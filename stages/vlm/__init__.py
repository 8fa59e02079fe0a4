"""Model families: one file each for positions, image tokens, loading and tiny recipes. Nothing outside knows a family's name.

What needs torch and transformers is imported when it is first asked for: they take 0.4 GiB, which a stage that finds every
answer in the store does without.
"""

import importlib
from typing import TYPE_CHECKING, Any

from stages.vlm.chat import IMAGE_MARKER, Chat, RemoteChat
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card

if TYPE_CHECKING:
    from stages.vlm.family import Pixels
    from stages.vlm.reader import Network, Prompt, Reader, build_tiny, load_chat, load_network, load_reader, text_hidden
    from stages.vlm.room import too_long

__all__ = [
    "IMAGE_MARKER",
    "Chat",
    "Checkpoint",
    "Network",
    "Pixels",
    "Prompt",
    "Reader",
    "RemoteChat",
    "build_tiny",
    "load_chat",
    "load_network",
    "load_reader",
    "open_checkpoint",
    "text_hidden",
    "too_long",
    "write_card",
]


def __getattr__(name: str) -> Any:
    """The parts that need torch; called by Python for names that are not there yet."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    module = {"Pixels": "family", "too_long": "room"}.get(name, "reader")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
