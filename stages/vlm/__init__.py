"""Model families: one file each for positions, image tokens, loading and tiny recipes. Nothing outside knows a family's name."""

from stages.vlm.chat import IMAGE_MARKER, Chat, RemoteChat
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card
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
