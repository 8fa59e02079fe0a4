"""Small groups of responses, and settings of the loop, for tests of the policy and of the adversary."""

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from stages.config.ril import Ril
from stages.config.sampling import Sampling
from stages.groups.response import STUDENT, Response
from stages.vlm.reader import Reader


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((84, 84)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def loop(**changed: Any) -> Ril:
    values: dict[str, Any] = {
        "steps": 9,
        "learning_rate": 1e-2,
        "discriminator_learning_rate": 1e-3,
        "tokens_per_pack": 4096,
    }
    return Ril(**{**values, "sampling": Sampling(max_tokens=16), **changed})


def answers(reader: Reader, reasons: Sequence[str] = ("stop",) * 4) -> list[Response]:
    texts, verdicts = ["3:3,8:11", "28", "so 5", "16 is the sum"], [0, 1, 1, 0]
    rows = zip(texts, reasons, verdicts, strict=True)
    return [
        Response(STUDENT if n < 2 else "teacher", text, tuple(reader.chat.encode_response(text)), reason, verdict)
        for n, (text, reason, verdict) in enumerate(rows)
    ]
