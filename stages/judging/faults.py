"""A judge that errs, for studies: a given share of its verdicts is turned.

Which ones follows from the question and the answer, so that the pool, the loop and a repeated run see the same error,
and equal answers get equal verdicts. The response store keeps what the judge said.
"""

from dataclasses import replace

from stages.job.seeds import derive_seed
from stages.judging.judge import JudgeVerdict


def turn_verdict(found: JudgeVerdict, question_id: str, candidate: str, share: float) -> JudgeVerdict:
    """Returns `found`, or its opposite for about `share` of all pairs of question and answer.

    Verdicts of rules and failed ones stay: both are no error of a judge.
    """
    if not share or found.verdict is None or not found.asked:
        return found
    turned = derive_seed("turned verdict", question_id, candidate) < share * 2**63
    return replace(found, verdict=1 - found.verdict) if turned else found
