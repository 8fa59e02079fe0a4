"""What one run of the loop is held to: the plain loop, and what the paper says of questions, rows and verdicts."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.loop.plain import NEGATIVE, Plain, StepNumbers, Written, choose_taught
from tests.loop.plain_models import VISION, Critic, Task, Vlm, copy_weights
from tests.loop.plain_rewards import Recipe, Row
from tests.loop.recording import Recording
from tests.loop.script import RIGHT, judge_answer
from tests.loop.world import DRAWN, LEARNING, MAX_TOKENS, TEACHERS, VALIDATION, is_cut, rate_teacher, say_as_teacher

GROUP = 4
TASKS = {task.id: task for task in LEARNING}


def list_tasks(recording: Recording, recipe: Recipe) -> list[list[Task]]:
    """The questions of each step, in the order in which the student's engine is asked; of what is learned without."""
    if recipe.samples:
        return [[TASKS[request.name] for request in requests] for requests in recording.student.asked]
    return [
        [TASKS[name] for name in dict.fromkeys(one["question_id"] for one in recording.samples if one["step"] == step)]
        for step in range(1, len(recipe.rates) + 1)
    ]


def check_questions(recording: Recording, recipe: Recipe) -> None:
    """Shuffled epochs; every request is for G answers with the run's sampling, and no two have one seed."""
    steps = list_tasks(recording, recipe)
    assert list(map(len, steps)) == [2] * len(recipe.rates)
    names = [task.id for tasks in steps for task in tasks]
    assert sorted(names[:4]) == sorted(TASKS), "the first epoch has every question once"
    assert len(set(names[4:])) == len(names[4:])
    requests = [request for step in recording.student.asked for request in step]
    for request in requests:
        task = TASKS[request.name]
        assert list(request.messages) == [{"role": "user", "content": "<image>" * len(task.images) + task.text}]
        assert tuple(request.images) == task.images
        assert (request.n, request.log_probs) == (GROUP, recipe.largest_correction is not None)
        assert (request.sampling.temperature, request.sampling.max_tokens) == (recipe.temperature, MAX_TOKENS)
    assert len(requests) == (2 * len(recipe.rates) if recipe.samples else 0)
    seeds = {request.seed + sample for request in requests for sample in range(GROUP)}
    assert len(seeds) == GROUP * len(requests), "two answers are sampled with one seed"


def check_rows(recording: Recording, folder: Path, recipe: Recipe) -> None:
    """G rows as the engine wrote them, then G of the teachers, half of each, another draw at every visit."""
    encode = Vlm(folder / "data" / "warm_start").encode_response
    draws: dict[str, list[tuple[str, ...]]] = {task: [] for task in TASKS}
    assert len(recording.rows) == len(recipe.rates)
    for step, tasks in enumerate(list_tasks(recording, recipe)):
        for task, rows in zip(tasks, recording.rows[step], strict=True):
            if recipe.references:
                text = task.target or task.answer
                assert rows == [Row("reference", text, encode(text), "stop", 1)]
                continue
            answered = GROUP if recipe.samples else 0
            for sample, row in enumerate(rows[:answered]):
                answer = recording.student.write(step, task.id, sample)
                said = (row.source, row.text, row.ids, row.finish)
                assert said == ("student", answer.text, answer.token_ids, answer.finish_reason)
                assert row.sampled == (answer.log_probs if recipe.largest_correction else None)
            drawn = rows[answered:]
            known = list_teacher_rows(task, encode)
            if recipe.parses:
                assert [row.verdict for row in rows] == [parse_verdict(row.text, task.answer) for row in rows]
                known = [replace(row, verdict=parse_verdict(row.text, task.answer)) for row in known]
            if recipe.imitates:
                known = [replace(row, verdict=1) for row in known]
            assert all(row in known for row in drawn), "an answer of the pool to this question, with its verdict"
            assert len({(row.source, row.text) for row in drawn}) == GROUP, "without replacement"
            assert Counter(row.source for row in drawn) == dict.fromkeys(TEACHERS, GROUP // 2)
            draws[task.id].append(tuple(sorted(row.text for row in drawn)))
    again = [visits for visits in draws.values() if len(visits) > 1]
    assert again or recipe.references or len(recipe.rates) == 2
    assert all(len(set(visits)) == len(visits) for visits in again), "a fresh draw at every visit"


def list_teacher_rows(task: Task, encode: Callable[[str], tuple[int, ...]]) -> list[Row]:
    """All answers of the pool to a question; those that were cut are not in it."""
    return [
        Row(teacher, text, encode(text), "stop", rate_teacher(teacher, task, sample))
        for teacher in TEACHERS
        for sample in range(DRAWN)
        for text in [say_as_teacher(teacher, task, sample)]
        if not is_cut(task, sample)
    ]


def parse_verdict(text: str, reference: str) -> int:
    """1 if the last number of the text is the reference."""
    return int(re.findall(r"\d+", text)[-1:] == [reference])


def check_judge(recording: Recording, recipe: Recipe) -> None:
    """Every student answer is judged once, against the reference of its own question; an empty one is wrong unasked."""
    if not recipe.judges:
        assert recording.judge.asked == []
        return
    for step, tasks in enumerate(list_tasks(recording, recipe)):
        pairs = [(task, row) for task, rows in zip(tasks, recording.rows[step], strict=True) for row in rows[:GROUP]]
        expected = [(task.text, row.text, task.answer) for task, row in pairs if row.text]
        assert recording.judge.asked[step] == expected
        found = [judge_answer(task.answer, row.text) if row.text else 0 for task, row in pairs]
        assert [row.verdict for _, row in pairs] == found
    every = [row for step in recording.rows for rows in step for row in rows[:GROUP]]
    assert {0, 1} <= {row.verdict for row in every}
    assert any(row.finish == "length" for row in every)
    if len(recipe.rates) == 3:
        assert any(row.verdict is None for row in every)
        assert any(not row.text for row in every)


def check_rubrics(recording: Recording, rubrics: Sequence[str]) -> None:
    """Every answer with a text is graded by each rubric, once: what comes again is in the store."""
    graded = [one for requests in recording.judge.graded for one in requests]
    failed = [one for one in graded if judge_answer(one[2], one[1]) is None]
    assert {one for one, times in Counter(graded).items() if times > 1} <= {*failed}, "a verdict was asked for twice"
    texts = {(task.text, row.text) for task, row in _iter_rows(recording) if row.text}
    assert set(graded) == {(question, text, rubric) for question, text in texts for rubric in rubrics}


def _iter_rows(recording: Recording) -> Iterator[tuple[Task, Row]]:
    for step, requests in enumerate(recording.student.asked):
        for request, rows in zip(requests, recording.rows[step], strict=True):
            yield from ((TASKS[request.name], row) for row in rows)


def check_scorers(recording: Recording, recipe: Recipe) -> None:
    """Every student answer goes to every model once, as it was sampled, with its question and images."""
    assert list(recording.teachers) == list(recipe.scorers)
    for model in recording.teachers.values():
        for step, requests in enumerate(model.asked):
            tasks = list_tasks(recording, recipe)[step]
            asked = [
                (task, row.ids) for task, rows in zip(tasks, recording.rows[step], strict=True) for row in rows[:GROUP]
            ]
            assert [(request.name, request.given_ids) for request in requests] == [
                (task.id, ids) for task, ids in asked
            ]
            for request, (task, _) in zip(requests, asked, strict=True):
                assert list(request.messages) == [{"role": "user", "content": "<image>" * len(task.images) + task.text}]
                assert (tuple(request.images), request.sampling.max_tokens) == (task.images, 1)
        assert len(model.asked) == len(recipe.rates)


def check_plain(recording: Recording, folder: Path, recipe: Recipe) -> None:
    """Logits, rewards, advantages, rates, and all weights after each step."""
    student = folder / "data" / "warm_start"
    start = copy_weights(Vlm(student).net)
    pretrained = load_file(folder / "data" / "discriminator" / "discriminator.safetensors")
    critic = (
        None if recipe.critic == "absent" else Critic(student, pretrained, recipe.critic_sees, recipe.critic_adapter)
    )
    plain = Plain(student, critic, recipe, recording.start)
    updates: list[tuple[str, float]] = []
    logits: list[float] = []
    dropped = 0
    tasks_of_steps = list_tasks(recording, recipe)
    for step, tasks in enumerate(tasks_of_steps):
        groups = recording.rows[step]
        negatives = []
        if "learns" in recipe.critic:
            written = [(row, task) for task, rows in zip(tasks, groups, strict=True) for row in rows]
            updates_of_step = recording.taught[step * recipe.mu : (step + 1) * recipe.mu]
            negatives = find_negatives(updates_of_step[0], choose_taught(written, recipe), recipe.negatives)
            assert updates_of_step == [updates_of_step[0]] * recipe.mu
        found = plain.step(step, tasks, groups, negatives)
        dropped += sum(not scored for scored in found.scored)
        logits += [z for z in found.logits if not math.isnan(z)]
        check_samples([one for one in recording.samples if one["step"] == step + 1], tasks, found)
        check_history(recording.history[step], found, recipe.rates[step])
        compare(recording.student.pushes[step], copy_weights(plain.student.net), start)
        if critic is not None and recording.critics:
            compare_critics(recording.critics[step], critic.copy_trained(), pretrained, recipe.pairs)
        for model, learns in (("discriminator", "learns" in recipe.critic), ("student", found.loss is not None)):
            rate = recipe.rates[step] if model == "student" else recipe.critic_rate
            updates += [(model, rate)] * recipe.mu * learns
    assert bool(dropped) != (recipe.keeps_equal_groups and recipe.keeps_failed_groups)
    assert critic is None or min(logits) < 0 < max(logits)
    assert len(recording.student.pushes) == len(recipe.rates)
    assert [model for model, _ in recording.updates] == [model for model, _ in updates]
    assert [rate for _, rate in recording.updates] == pytest.approx([rate for _, rate in updates])
    for name, value in start.items():
        assert torch.equal(recording.reference[name], value), f"the reference moved: {name}"
        if name.startswith(VISION) and not recipe.trains_vision:
            assert torch.equal(recording.student.pushes[-1][name], value), f"a frozen part moved: {name}"


def find_negatives(taught: Sequence[tuple[str, str]], written: Sequence[Written], count: int) -> list[Written]:
    """What D learns besides the texts that it should learn: broken texts, made from those of their question."""
    left, negatives = [(task.id, row.text) for row, task in written], list[Written]()
    for question, text in taught:
        if left and left[0] == (question, text):
            left.pop(0)
            continue
        answers = [row.text for row, task in written if task.id == question]
        assert text not in answers
        assert set(text) <= {*"".join(answers), " ", "\n"}, "a negative is made from the answers to its question"
        negatives.append((Row(NEGATIVE, text, (), "stop", None), TASKS[question]))
    assert left == [], "D learns every whole text of the step, in order"
    most = max(Counter(task.id for _, task in negatives).values(), default=0)
    assert bool(negatives) == bool(count)
    assert most <= count
    return negatives


def compare(ours: Mapping[str, Tensor], plain: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
    """All weights within 1e-6, and the gap within 0.1 % of the change."""
    assert ours.keys() == plain.keys()
    worst = max(float((ours[name] - plain[name]).abs().max()) for name in plain)
    gap = sum(float((ours[name] - plain[name]).square().sum()) for name in plain) ** 0.5
    change = sum(float((plain[name] - start[name]).square().sum()) for name in plain) ** 0.5
    print(f"weights: largest difference {worst:.1e}, of the change {gap / (change or 1):.1e}")
    assert worst <= 1e-6
    assert gap <= 1e-3 * change + 1e-12


def compare_critics(
    ours: Mapping[str, Tensor], plain: Mapping[str, Tensor], start: Mapping[str, Tensor], pairs: bool
) -> None:
    """The same of two discriminators.

    Pairs give the head's bias a gradient of rounding alone, which AdamW makes as large as any other: it is left out.
    """
    left_out = ("vision.", "score.bias") if pairs else ("vision.",)
    compare(
        {name: value for name, value in ours.items() if not name.startswith(left_out)},
        {name: value for name, value in plain.items() if not name.startswith(left_out)},
        start,
    )


def check_samples(samples: Sequence[Mapping[str, Any]], tasks: Sequence[Task], found: StepNumbers) -> None:
    """The rows of a step that stay in their groups, in order, with rewards and advantages."""
    expected = [(task, one) for task, group in zip(tasks, found.scored, strict=True) for one in group]
    rows = [(task.id, one.row.source, one.row.text) for task, one in expected]
    assert [(sample["question_id"], sample["source"], sample["response"]) for sample in samples] == rows
    for sample, (_, one) in zip(samples, expected, strict=True):
        if math.isnan(one.logit):
            assert sample["logit"] is None
        else:
            assert sample["logit"] == pytest.approx(one.logit, abs=2e-5)
        assert sample["answer"] == one.answer
        assert sample["similarity"] == pytest.approx(one.similarity, abs=2e-5)
        assert sample["advantage"] == pytest.approx(one.advantage, abs=1e-4)
    assert not any(abs(z) < 1e-3 for z in found.logits), "a logit so near 0 that rounding decides: take other texts"


def check_history(row: Mapping[str, float], found: StepNumbers, rate: float) -> None:
    """What the curves show is what was computed."""
    if found.loss is None:
        assert "loss" not in row
        return
    assert row["loss"] == pytest.approx(found.loss, rel=1e-4, abs=1e-6)
    assert row["grad_norm"] == pytest.approx(found.norm, rel=1e-4)
    assert row["learning_rate"] == pytest.approx(rate)
    if found.kl is not None:
        assert row["kl/student"] == pytest.approx(found.kl, rel=1e-3, abs=1e-8)
    if found.critic_loss is not None:
        assert row["disc/loss"] == pytest.approx(found.critic_loss, rel=1e-4)


def check_validation(recording: Recording, folder: Path, recipe: Recipe) -> None:
    """Greedy answers before and after every step; the first of the best is kept, and the last."""
    for requests in recording.student.validated:
        assert sorted(request.name for request in requests) == sorted(task.id for task in VALIDATION)
        assert all((request.n, request.sampling.max_tokens) == (1, MAX_TOKENS) for request in requests)
    steps = len(recipe.rates)
    expected = [{"step": step, "validation": len(RIGHT[step]) / len(VALIDATION)} for step in range(steps + 1)]
    assert [{"step": row["step"], "validation": row["validation"]} for row in recording.validation] == expected
    assert recording.metrics["validation"]["kept_step"] == 1
    for name, push in (("model", 0), ("last", steps - 1)):
        kept = Vlm(folder / "data" / "ril" / name).net.state_dict()
        for key, value in recording.student.pushes[push].items():
            assert torch.equal(kept[key], value), f"{name} is not the student after {push + 1} steps"
