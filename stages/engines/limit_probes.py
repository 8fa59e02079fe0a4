"""Images beyond a model's limits, by which a running server shows whether it has the same limits."""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from PIL import Image

from stages.config.sampling import Sampling
from stages.corpora.markers import IMAGE_MARKER
from stages.engines.engine import Request

if TYPE_CHECKING:
    from stages.vlm.reader import Reader  # needs torch

_SIZES = ((4000, 3000), (28, 28))  # of a photo, and of the smallest image


def iter_limit_probes(reader: "Reader", context_tokens: int) -> Iterator[Request]:
    """Yields requests with a blank image above and below usual limits, as far as they fit the context."""
    messages = [{"role": "user", "content": IMAGE_MARKER}]
    for width, height in _SIZES:
        buffer = io.BytesIO()
        Image.new("RGB", (width, height), "white").save(buffer, "PNG")
        if reader.count_prompt_tokens(messages, [buffer.getvalue()]) < context_tokens:
            name = f"with a blank image of {width} x {height} pixels"
            yield Request(name, messages, [buffer.getvalue()], Sampling(temperature=0.0, max_tokens=1))
