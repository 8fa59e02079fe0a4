"""On-policy distillation in the whole stage: curves, a run that was cut off, answers that a teacher cannot read."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import ril
from stages.config.yaml import merge_params
from stages.corpora.rows import Question
from stages.engines.engine import EngineError
from stages.groups.response import STUDENT, Response
from stages.job.failure import Failure
from stages.loop import models as loop_models
from stages.loop.teachers import LoopTeacher
from stages.vlm.checkpoint import open_checkpoint
from stages.vlm.shared_ids import SharedIds
from tests.loop import world
from tests.loop.plain import pick
from tests.loop.plain_models import Vlm
from tests.loop.recording import read_table, record_loop
from tests.loop.script import TASKS, ScriptedStudent
from tests.loop.settings import DISTILLED, PAPER, distil
from tests.loop.world import MAX_TOKENS, build_checkpoint, make_job, write_scorers

STEPS = {"ril": {"steps": len(PAPER.rates)}}


def distilled(folder: Path, family: str = "qwen2_5_vl") -> Path:
    """The project with the models of both teachers."""
    write_scorers(folder, family)
    return folder


def read_last(folder: Path) -> dict[str, torch.Tensor]:
    """The student after the last step."""
    return dict(Vlm(folder / "data" / "ril" / "last").net.state_dict())


def test_the_curves_are_the_reverse_kl_of_each_teacher(make_world: Callable[[str], Path]) -> None:
    """Of the first step, whose student is that of the start: log p at the temperature of sampling, and at 1."""
    folder = distilled(make_world("qwen2_5_vl"))
    recording = record_loop(make_job("ril", folder, distil("qwen2_5_vl")))
    student = Vlm(folder / "data" / "warm_start")
    scorers = {name: Vlm(folder / "data" / "model" / name) for name in DISTILLED.scorers}
    gaps: dict[str, list[torch.Tensor]] = {name: [] for name in scorers}
    requests = recording.teachers[DISTILLED.scorers[0]].asked[0]
    with torch.no_grad():
        for request in requests:
            task, ids = TASKS[request.name], request.given_ids
            ours = pick(student.spread(task, [ids], 0.8)[0], ids)
            for name, scorer in scorers.items():
                gaps[name].append(ours - pick(scorer.spread(task, [ids])[0], ids))
    means = {name: float(torch.cat(values).mean()) for name, values in gaps.items()}
    row = recording.history[0]
    for name, mean in means.items():
        assert row[f"reverse_kl/{name}"] == pytest.approx(mean, rel=1e-4)
    assert row["reverse_kl"] == pytest.approx(sum(means.values()) / 2, rel=1e-4)
    assert row["frac_unscored"] == 0.0
    assert "frac_reward_zero_std" not in row, "there are no rewards to be equal"
    assert abs(means["qwen2_5_vl"] - means["internvl3"]) > 1e-3


def test_a_run_cut_off_while_teachers_score_goes_on_and_ends_with_equal_weights(
    make_world: Callable[[str], Path], tmp_path: Path
) -> None:
    """The student's answers of that step were recorded, those of the steps before with the teachers' values."""
    folder = distilled(make_world("qwen2_5_vl"))
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    overlay = merge_params(distil("qwen2_5_vl"), {**STEPS, "runtime": {"checkpoint_minutes": 0}})
    whole = record_loop(make_job("ril", folder, overlay))
    cut = make_job("ril", other, overlay)
    with pytest.raises(EngineError, match="taken away"):
        record_loop(cut, fails_at=2)
    again = record_loop(cut)
    assert again.student.asked == [], "what was sampled is not sampled again"
    assert [len(one.asked) for one in again.teachers.values()] == [1, 1], "the teachers score that step alone"
    first, second = read_last(folder), read_last(other)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert [row["loss"] for row in again.history] == [row["loss"] for row in whole.history]


def test_a_step_whose_values_were_recorded_asks_no_teacher(make_world: Callable[[str], Path]) -> None:
    job = make_job("ril", distilled(make_world("qwen2_5_vl")), distil("qwen2_5_vl"))
    first = record_loop(job)
    assert job.run_folder is not None
    recorded = json.loads(min((job.run_folder / "recorded").glob("step_*.json")).read_text())
    rows = [row for group in recorded["groups"] for row in group if row["source"] == "student"]
    assert all([len(one) for one in row["teacher_log_probs"]] == [len(row["token_ids"])] * 2 for row in rows)
    again = record_loop(job)  # from the start, with the records of every step
    assert [one.asked for one in again.teachers.values()] == [[], []]
    assert again.history == first.history


@pytest.mark.slow
def test_a_teacher_of_each_family_scores_what_the_student_really_samples(
    make_world: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With vLLM for all three: log p of the student's ids after each teacher's own prompt, as transformers has it."""
    folder = make_world("qwen2_5_vl")
    names = ["internvl3", "qwen2_5_vl"]  # of models, and of their families
    for number, name in enumerate(names):
        build_checkpoint(name, folder / "data" / "model" / name, 5 + number)
    found: dict[str, list[tuple[str, tuple[int, ...], tuple[float, ...]]]] = {}
    score = LoopTeacher.score

    def record(teacher: LoopTeacher, questions: Sequence[Question], groups: Sequence[Sequence[Response]]) -> Any:
        values = score(teacher, questions, groups)
        pairs = [(question.id, row) for question, group in zip(questions, groups, strict=True) for row in group]
        ours = [(name, row.token_ids) for name, row in pairs if row.source == STUDENT]
        found[teacher.name] = [(*one, of) for one, of in zip(ours, values, strict=True)]
        return values

    monkeypatch.setattr(LoopTeacher, "score", record)
    overlay = distil("qwen2_5_vl", distillation=names, steps=1, warmup_steps=1, kl_weight=0.0)
    job = make_job("ril", folder, overlay | {"models": {name: {"family": name} for name in names}})
    ril.run(job)
    assert list(found) == names
    for name, rows in found.items():
        scorer = Vlm(folder / "data" / "model" / name)
        scored = [one for one in rows if one[2]]
        assert len({len(ids) for _, ids, _ in scored}) > 1, "answers of several lengths"
        for question, ids, values in scored:
            with torch.no_grad():
                plain = pick(scorer.spread(TASKS[question], [ids])[0], ids)
            assert list(values) == pytest.approx(plain.tolist(), abs=1e-4)
    words = json.loads((folder / "data" / "warm_start" / "tokenizer.json").read_text())["model"]["vocab"]
    unscored = {name: [ids for _, ids, values in rows if not values] for name, rows in found.items()}
    assert unscored["qwen2_5_vl"] == [], "the student's own family has all of its tokens"
    assert all(max(ids) >= len(words) for ids in unscored["internvl3"]), "added tokens have other ids there"
    (row,) = read_table(job.reports / "history.csv")
    mean = (row["reverse_kl/internvl3"] + row["reverse_kl/qwen2_5_vl"]) / 2
    assert row["reverse_kl"] == pytest.approx(mean, rel=1e-4)
    assert "judge/failed" not in row


def test_a_teacher_with_another_tokenizer_is_refused_before_any_engine_starts(
    make_world: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_world("qwen2_5_vl")
    monkeypatch.setattr(world, "PROSE", [*world.PROSE, "zebra zenith zigzag zoology " * 9])
    build_checkpoint("qwen2_5_vl", folder / "data" / "model" / "qwen2_5_vl", 5)
    job = make_job("ril", folder, distil("qwen2_5_vl", distillation=["qwen2_5_vl"]))
    monkeypatch.setattr(loop_models, "start_trainable", lambda *_: pytest.fail("an engine was started"))
    with pytest.raises(Failure) as caught:
        ril.run(job)
    message = str(caught.value)
    assert message.startswith(
        "ril.distillation: qwen2_5_vl does not have the tokenizer of the student (data/warm_start): "
    )
    assert "of qwen2_5_vl; distil from models with the student's tokenizer only" in message


def test_a_question_too_long_for_a_teacher_is_a_reject(make_world: Callable[[str], Path]) -> None:
    """With its answer of max_tokens and the one token that vLLM generates beside."""
    folder = distilled(make_world("qwen2_5_vl"))
    card = folder / "data" / "model" / "internvl3" / "ril.json"
    values = json.loads(card.read_text())
    card.write_text(json.dumps({**values, "context_tokens": MAX_TOKENS + 48}))
    overlay = merge_params(distil("qwen2_5_vl"), {"ril": {"max_reject_share": 1.0, "questions_per_step": 1}})
    recording = record_loop(make_job("ril", folder, overlay))
    lines = [json.loads(line) for line in (folder / "reports/ril/rejects.jsonl").read_text().splitlines()]
    assert lines
    assert all("internvl3 of ril.distillation: prompt of" in line["reason"] for line in lines)
    asked = {request.name for step in recording.student.asked for request in step}
    assert asked.isdisjoint({line["question_id"] for line in lines})


def test_an_answer_with_a_token_that_one_teacher_lacks_has_no_policy_term(
    make_world: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts in `frac_unscored`; the teacher that has the token is asked for it."""
    folder = distilled(make_world("qwen2_5_vl"))
    answer = ScriptedStudent(open_checkpoint(folder / "data" / "warm_start")).write(0, "q0", 0)
    missing = answer.token_ids[0]
    whole = SharedIds.translate

    def translate(shared: SharedIds, ids: Sequence[int]) -> tuple[int, ...]:
        lacks = shared is not first and missing in ids
        return () if lacks else whole(shared, ids)

    read = loop_models.read_teachers

    def read_teachers(*given: Any) -> list[LoopTeacher]:
        nonlocal first
        found = read(*given)
        first = found[0].ids
        return found

    first: SharedIds | None = None
    monkeypatch.setattr(loop_models, "read_teachers", read_teachers)
    monkeypatch.setattr(SharedIds, "translate", translate)
    job = make_job("ril", folder, merge_params(distil("qwen2_5_vl"), {"ril": {"steps": 1, "warmup_steps": 1}}))
    recording = record_loop(job)
    rows = [row for group in recording.rows[0] for row in group if row.ours]
    lacking = [missing in row.ids for row in rows]
    assert 0 < sum(lacking) < len(rows)
    asked = [len(one.asked[0]) for one in recording.teachers.values()]
    assert asked == [len(rows), len(rows) - sum(lacking)]
    assert recording.history[0]["frac_unscored"] == pytest.approx(sum(lacking) / len(rows))
    assert job.run_folder is not None
    recorded = json.loads(min((job.run_folder / "recorded").glob("step_*.json")).read_text())
    values = [row["teacher_log_probs"] for group in recorded["groups"] for row in group if row["source"] == "student"]
    assert [one == [] for one in values] == lacking
