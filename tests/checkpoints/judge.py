"""What a judge with real weights is worth: its exam, and its agreement with answers labelled by hand.

    python -m tests.checkpoints.judge FOLDER --form plain      # FOLDER: a checkpoint, such as SmolLM2-135M-Instruct

The labelled answers are those of tests/stages/benchmarks; the judge is asked where the rules of `ours` are not sure.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flows.environment import prepare
from stages.benchmarks.split_scores import AnswerScore, score_answers
from stages.config.engines import Vllm
from stages.config.runtime import Runtime
from stages.config.verdict import Verdict
from stages.corpora.rows import Question
from stages.engines.engine import Engine
from stages.engines.vllm import VllmEngine
from stages.judging.exam import examine, judge_beside_training
from stages.vlm.checkpoint import open_checkpoint, write_card

LABELLED = Path(__file__).parents[1] / "stages/benchmarks/labelled_answers.jsonl"


def read_labelled() -> list[dict[str, Any]]:
    """Returns the rows labelled by hand."""
    return [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]


def score_labelled(judge: Engine | None, block: Verdict) -> list[AnswerScore]:
    """Returns the score of each labelled answer, by the rules alone without a judge."""
    pairs = [
        (
            Question(
                str(at), (), (), ({"role": "user", "content": row["question"]},), None, row["reference"], "s", "k"
            ),
            row["answer"],
        )
        for at, row in enumerate(read_labelled())
    ]
    ask = None if judge is None else partial(judge_beside_training, judge=judge, block=block)
    return score_answers(pairs, ask)


def describe_agreement(found: Sequence[AnswerScore]) -> dict[str, Any]:
    """Returns the share of labels that the scores agree with; no verdict counts as no agreement."""
    labels = [row["label"] for row in read_labelled()]
    same = [one.score == label for one, label in zip(found, labels, strict=True)]
    judged = [agrees for agrees, one in zip(same, found, strict=True) if not one.decided_by.startswith("rule")]
    return {
        "answers": len(same),
        "agree": sum(same),
        "share": round(sum(same) / len(same), 3),
        "judged": len(judged),
        "judged_agree": sum(judged),
        "no_verdict": sum(one.score is None for one in found),
        "said_right": sum(one.score == 1 for one in found if not one.decided_by.startswith("rule")),
    }


def main() -> None:
    """Prints the figures of one judge, as JSON lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="checkpoint of a chat model")
    parser.add_argument("--form", choices=("tag", "plain"), default="plain")
    parser.add_argument("--constrained", action="store_true", help="form tag: constrain the output")
    parser.add_argument("--max-tokens", type=int, default=128)
    given = parser.parse_args()
    block = Verdict(model="judge", form=given.form, constrained=given.constrained, max_tokens=given.max_tokens)
    print(json.dumps({"rules alone": describe_agreement(score_labelled(None, block))}))
    with tempfile.TemporaryDirectory() as card:
        write_card(Path(card), "text", "bf16", 2048, {"path": str(given.folder.resolve()), "identity": "measured"})
        judge = VllmEngine(open_checkpoint(Path(card)), Runtime(), Vllm(kind="vllm", sequences=32))
        try:
            began = time.monotonic()
            print(json.dumps({"exam": examine(judge, block), "seconds": round(time.monotonic() - began)}))
            print(json.dumps({"rules and judge": describe_agreement(score_labelled(judge, block))}))
        finally:
            judge.close()


if __name__ == "__main__":
    prepare()
    main()
