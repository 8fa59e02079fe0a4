"""The engine of ranks other than the first: rank 0 generates and shares the answers with the others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.engines.engine import Answer, Outcome, Request
from stages.vlm.chat import Chat
from stages.vlm.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor


class NullEngine:
    """Placeholder for the student's engine, which another process runs; generating with it is an error."""

    name = "elsewhere"
    version = ""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @property
    def chat(self) -> Chat:
        """The model's chat."""
        from stages.vlm.reader import load_reader  # needs torch, which a stage that only reads the store does without

        return load_reader(self.checkpoint).chat

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, Outcome]]:
        """Raises RuntimeError: only the first rank generates."""
        raise RuntimeError("questions were asked on a rank that has no engine; only the first rank asks")

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Raises RuntimeError: only the first rank generates."""
        raise RuntimeError(
            f"{len(requests)} questions were asked on a rank that has no engine; only the first rank asks"
        )

    def update_weights(self, named: "Iterable[tuple[str, Tensor]]") -> int:
        """Gives this rank's part of weights that are gathered; the first rank's engine gets them."""
        for _ in named:
            pass
        return 0

    def update_adapter(self, save: Callable[[Path], None], size: int) -> int:
        """Does nothing; the first rank's engine gets the adapter."""
        return 0

    def close(self) -> None:
        """Does nothing; there is nothing to free."""
