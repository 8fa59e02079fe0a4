"""Stage `verdict` with a scripted judge: every answer gets the verdict on it, the exam stays apart."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.jobs import open_job
from stages import verdict
from stages.config.params import validate_params
from stages.config.yaml import merge_params, read_yaml
from stages.job.files import read_json, read_shards, write_shards
from stages.job.job import Job
from stages.judging.exam import list_exam_items
from stages.judging.faults import turn_verdict
from stages.judging.judge import JudgeQuestion, JudgeVerdict
from stages.responses.schemas import ANSWERS
from stages.responses.store import StoredAnswer
from tests.stages.test_row_memory import record_columns

CANDIDATE = re.compile(r"<candidate (\w+)> (.*) </candidate \1>\n<reference> (.*) </reference>", re.DOTALL)


@pytest.mark.parametrize(("exam", "turned"), [(False, 0.0), (True, 0.0), (True, 0.5)])
def test_every_answer_has_the_verdict_on_it(
    root: Path,
    tmp_path: Path,
    loop_project: Callable[[str, Mapping[str, Any]], Job],
    monkeypatch: pytest.MonkeyPatch,
    exam: bool,
    turned: float,
) -> None:
    """The judge finds right what ends like the reference, does not reply to one answer and says no score to another.

    With `turned`, it errs on some of them, and on none of the exam.
    """
    answers = ["it is 0", "it is 7", "silence 1", "it is 1", "it is 3", "babble 2"]
    write_shards(
        tmp_path / "data" / "teacher" / "internvl3",
        [
            dict.fromkeys(ANSWERS.names)
            | {"question_id": f"q{place // 2}", "sample": place % 2, "response": text, "finish_reason": "stop"}
            for place, text in enumerate(answers)
        ],
        ANSWERS,
    )
    asked: list[tuple[str, str]] = []

    def fetch(
        job: Job, generation: Any, prompts: Sequence[JudgeQuestion], title: str, max_reject_share: float
    ) -> list[list[StoredAnswer]]:
        replies = []
        for prompt in prompts:
            found = CANDIDATE.search(prompt.messages[-1]["content"])
            assert found is not None
            said, reference = found[2], found[3]
            asked.append((said, reference))
            text = "so?" if said.startswith("babble") else f"<answer>{int(said.endswith(reference))}</answer>"
            stored = StoredAnswer(f"key of {said}", "", 0, prompt.id, text, (), "stop", 9, 3, "", "")
            replies.append([] if said.startswith("silence") else [stored])
        return replies

    monkeypatch.setattr(verdict, "fetch_each_answer", fetch)
    values = {"verdict": {"exam": exam, "min_exam_accuracy": 0.0, "max_failed_share": 0.5, "turned": turned}}
    params = validate_params(merge_params(read_yaml(root / "params.yaml"), values))
    job = open_job("verdict", "internvl3", tmp_path, params)
    read = record_columns(monkeypatch)
    verdict.run(job)
    assert read >= {"response", "answer"}
    assert not read & {"images", "token_ids"}
    assert asked[-6:] == [(text, str(place // 2)) for place, text in enumerate(answers)]
    assert (len(asked) > 6) == exam
    rows = read_shards(job.out).to_pylist()
    right = [("q0", 0, 1), ("q0", 1, 0), ("q1", 0, None), ("q1", 1, 1), ("q2", 0, 0), ("q2", 1, None)]
    kept = [
        (name, sample, turn_verdict(JudgeVerdict(mark, "", None, asked=True), name, text, turned).verdict)
        for (name, sample, mark), text in zip(right, answers, strict=True)
    ]
    assert [(row["question_id"], row["sample"], row["verdict"]) for row in rows] == kept
    assert (kept == right) == (turned == 0)
    assert [row["response_key"] for row in rows][:3] == ["key of it is 0", "key of it is 7", None]
    metrics = read_json(job.reports / "metrics.json")
    assert (metrics["verdicts"], metrics["failed"]) == (6, 2)
    assert metrics["correct_share"] == sum(mark == 1 for _, _, mark in kept) / 4
    assert (metrics["exam"] is not None) == exam
    assert len(list_exam_items()) > 100
