"""Schemas of outs that are projections of the store: no times, no engines, nothing that differs between runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

ANSWERS = pa.schema(
    [
        ("question_id", pa.string()),
        ("sample", pa.int32()),
        ("response", pa.string()),
        ("finish_reason", pa.string()),  # "length": truncated at max_tokens or at the end of the context
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("response_key", pa.string()),  # the answer's key in the store
        ("token_ids", pa.list_(pa.int32())),  # of the model that generated it, as sampled
    ]
)
VERDICTS = pa.schema(
    [
        ("question_id", pa.string()),
        ("sample", pa.int32()),
        ("verdict", pa.int8()),  # 1, 0, or null (the judge gave no verdict)
        ("explanation", pa.string()),  # the judge's text, or the rule that decided
        ("response_key", pa.string()),  # the judge's answer in the store; null where a rule decided
    ]
)
POOL = pa.schema(
    [
        ("question_id", pa.string()),
        (
            "answers",
            pa.list_(
                pa.struct(
                    [
                        ("teacher", pa.string()),
                        ("sample", pa.int32()),
                        ("text", pa.string()),
                        ("verdict", pa.int8()),
                        ("finish_reason", pa.string()),
                    ]
                )
            ),
        ),
    ]
)


def compute_answer_statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns counts and means over rows of ANSWERS, for metrics and tables."""
    tokens = sum(row["completion_tokens"] for row in rows)
    cut = sum(row["finish_reason"] == "length" for row in rows)
    return {
        "questions": len({row["question_id"] for row in rows}),
        "answers": len(rows),
        "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
        "completion_tokens": tokens,
        "mean_tokens": tokens / max(len(rows), 1),
        "truncated_share": cut / max(len(rows), 1),
        "empty_share": sum(not row["response"] for row in rows) / max(len(rows), 1),
    }
