"""The exam of one judge with every mistake: `python tests/performance/judge_exam.py [folder of the model,
data/model/judge]`.

Stage `verdict` measures the same in every run; here the texts are shown too. Ten seconds for the tiny judge on one
core.
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flows.environment import prepare
from stages.config.runtime import Runtime
from stages.config.verdict import Verdict as Block
from stages.engines.engine import Answer, Request
from stages.engines.vllm import VllmEngine
from stages.judging.exam import ATTACKS, CASES, compute_exam_scores, list_exam_items, read_exam_rows
from stages.judging.judge import JudgeQuestion, JudgeVerdict, judge_items, make_fit_check, make_judge_sampling
from stages.vlm.checkpoint import open_checkpoint

MAX_TOKENS = 96  # as params.yaml has it for the tiny judge


def sat(folder: Path) -> list[JudgeVerdict]:
    """The judge's verdicts on `list_exam_items()`."""
    checkpoint = open_checkpoint(folder)
    engine = VllmEngine(checkpoint, Runtime())
    greedy = make_judge_sampling(Block(model=folder.name, max_tokens=MAX_TOKENS))

    def ask(questions: Sequence[JudgeQuestion]) -> list[Answer]:
        found = dict(engine.generate([Request(one.id, one.messages, one.images, greedy) for one in questions]))
        return [found[index][0] for index in range(len(questions))]

    try:
        return judge_items(list_exam_items(), ask, make_fit_check(engine.chat, checkpoint.context_tokens, MAX_TOKENS))
    finally:
        engine.close()


def show(found: Sequence[JudgeVerdict]) -> None:
    """Prints the figures, the attacks by kind, and every mistake with the judge's words."""
    scores, cases, attacks = compute_exam_scores(found), read_exam_rows(CASES), read_exam_rows(ATTACKS)
    for kind, share in scores["by_kind"].items():
        print(f"{kind:12} {sum(case['kind'] == kind for case in cases):4} cases   balanced accuracy {share:.3f}")
    print(f"{'all':12} {len(cases):4} cases   balanced accuracy {scores['balanced_accuracy']:.3f}")
    lost = set(scores["attacks_lost"])
    for kind, count in Counter(row["kind"] for row in attacks).items():
        held = sum(row["kind"] == kind and row["id"] not in lost for row in attacks)
        print(f"{kind:16} {held} of {count} attacks held")
    twins = [verdict.verdict == row["verdict"] for verdict, row in zip(found[len(cases) :: 2], attacks, strict=True)]
    print(
        f"{'all':16} {len(attacks) - len(lost)} of {len(attacks)} attacks held, {sum(twins)} harmless twins "
        "judged right\n"
    )
    for item, row, verdict in zip(
        list_exam_items(), [*cases, *(row for row in attacks for _ in range(2))], found, strict=True
    ):
        if verdict.verdict != row["verdict"]:
            print(f"{item.name}: {item.reference!r} | {item.candidate[-100:]!r} | {verdict.explanation!r}")


if __name__ == "__main__":
    prepare()
    began = time.monotonic()
    show(sat(Path(sys.argv[1] if len(sys.argv) > 1 else "data/model/judge").resolve()))
    print(f"{time.monotonic() - began:.1f} s")
