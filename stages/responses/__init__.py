"""The response store: every model answer that costs money is kept, found again by what was asked, and paid for once.

`stages.responses.answers` asks models (and so needs an engine); here is what reads stored answers and rows.
"""

from stages.responses.key import Asked, answer_key, request_seed
from stages.responses.rows import ANSWERS, POOL, VERDICTS, answer_rows, answer_statistics
from stages.responses.store import Store, StoredAnswer

__all__ = [
    "ANSWERS",
    "POOL",
    "VERDICTS",
    "Asked",
    "Store",
    "StoredAnswer",
    "answer_key",
    "answer_rows",
    "answer_statistics",
    "request_seed",
]
