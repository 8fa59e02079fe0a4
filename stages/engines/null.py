"""The engine of a rank that has none: the first rank asks, and tells the others what came out."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from stages.engines.engine import Answer, Request
from stages.vlm.chat import Chat
from stages.vlm.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor


class NullEngine:
    """Stands for the student's engine, which another process runs; asking it is a mistake."""

    name = "elsewhere"
    version = ""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @property
    def chat(self) -> Chat:
        """The model's own."""
        from stages.vlm.reader import load_reader  # needs torch, which a stage that only reads the store does without

        return load_reader(self.checkpoint).chat

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Raises RuntimeError: only the first rank asks."""
        raise RuntimeError(
            f"{len(requests)} questions were asked on a rank that has no engine; only the first rank asks"
        )

    def update_weights(self, named: "Iterable[tuple[str, Tensor]]") -> None:
        """Nothing to do here; the first rank's engine gets them."""

    def close(self) -> None:
        """Nothing to free."""
