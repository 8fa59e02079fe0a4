"""`ril.run` against the plain loop: rows, order, verdicts, logits, advantages, rates, weights, validation."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.loop.plain import VISION, Critic, Plain, Recipe, Row, Scored, StepNumbers, Task, Vlm, copy_weights
from tests.loop.recording import Recording, record_loop
from tests.loop.script import RIGHT, judge_answer
from tests.loop.world import DRAWN, LEARNING, MAX_TOKENS, TEACHERS, VALIDATION, make_job, rate_teacher, say_as_teacher

GROUP, STEPS = 4, 3
TASKS = {task.id: task for task in LEARNING}


@dataclass(frozen=True)
class Setting:
    """One run: what lies over the parameters of the world, and the same as a recipe."""

    family: str
    recipe: Recipe
    overlay: Mapping[str, Any] = field(default_factory=dict)


PAPER = Recipe(rates=(5e-6, 1e-5, 1e-5), critic_rate=2e-5, max_tokens=MAX_TOKENS, temperature=0.8)
SETTINGS = {
    "qwen2_5_vl": Setting("qwen2_5_vl", PAPER),
    "internvl3, mu 2": Setting(
        "internvl3",
        replace(PAPER, mu=2, rates=(1e-5, 7e-6, 4e-6), kl_weight=1.0),
        {"ril": {"inner_updates": 2, "warmup_steps": 0, "final_learning_rate": 1e-6, "kl_weight": 1.0}},
    ),
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_the_loop_does_what_the_paper_says(name: str, make_world: Callable[[str], Path]) -> None:
    setting = SETTINGS[name]
    folder = make_world(setting.family)
    recording = record_loop(make_job("ril", folder, setting.overlay))
    check_questions(recording)
    check_rows(recording, folder)
    check_judge(recording)
    check_plain(recording, folder, setting.recipe)
    check_validation(recording, folder)


def asked_tasks(recording: Recording) -> list[list[Task]]:
    """The questions of each step, in the order in which the student's engine is asked."""
    return [[TASKS[request.name] for request in requests] for requests in recording.student.asked]


def check_questions(recording: Recording) -> None:
    """Shuffled epochs; every request is for G answers with the run's sampling, and no two have one seed."""
    steps = asked_tasks(recording)
    names = [task.id for tasks in steps for task in tasks]
    assert sorted(names[:4]) == sorted(TASKS), "the first epoch has every question once"
    assert len(set(names[4:])) == 2
    requests = [request for step in recording.student.asked for request in step]
    for request in requests:
        task = TASKS[request.name]
        assert list(request.messages) == [{"role": "user", "content": "<image>" * len(task.images) + task.text}]
        assert tuple(request.images) == task.images
        assert (request.n, request.log_probs) == (GROUP, False)
        assert (request.sampling.temperature, request.sampling.max_tokens) == (0.8, MAX_TOKENS)
    assert len({request.seed for request in requests}) == len(requests)
    seeds = {request.seed + sample for request in requests for sample in range(GROUP)}
    assert len(seeds) == GROUP * len(requests)


def check_rows(recording: Recording, folder: Path) -> None:
    """G rows as the engine wrote them, then G of the teachers: their own answers to the question, with stored verdicts."""
    encode = Vlm(folder / "data" / "warm_start").encode_response
    draws: dict[str, list[tuple[str, ...]]] = {task: [] for task in TASKS}
    for step, tasks in enumerate(asked_tasks(recording)):
        assert len(recording.rows[step]) == len(tasks)
        for task, rows in zip(tasks, recording.rows[step], strict=True):
            for sample, row in enumerate(rows[:GROUP]):
                written = recording.student.write(step, task.id, sample)
                said = (row.source, row.text, row.ids, row.finish)
                assert said == ("student", written.text, written.token_ids, written.finish_reason)
            known = {
                (teacher, say_as_teacher(teacher, task, sample)): rate_teacher(teacher, task, sample)
                for teacher in TEACHERS
                for sample in range(DRAWN)
            }
            drawn = [(row.source, row.text) for row in rows[GROUP:]]
            assert [row.verdict for row in rows[GROUP:]] == [known[one] for one in drawn]
            assert [row.ids for row in rows[GROUP:]] == [encode(text) for _, text in drawn]
            assert all(row.finish == "stop" for row in rows[GROUP:])
            assert len(set(drawn)) == GROUP, "without replacement"
            assert Counter(source for source, _ in drawn) == dict.fromkeys(TEACHERS, GROUP // 2)
            draws[task.id].append(tuple(sorted(text for _, text in drawn)))
    again = [visits for visits in draws.values() if len(visits) > 1]
    assert again
    assert all(len(set(visits)) == len(visits) for visits in again), "a fresh draw at every visit"


def check_judge(recording: Recording) -> None:
    """Every student answer is judged once, against the reference of its own question; an empty one is wrong unasked."""
    for step, tasks in enumerate(asked_tasks(recording)):
        pairs = [(task, row) for task, rows in zip(tasks, recording.rows[step], strict=True) for row in rows[:GROUP]]
        expected = [(task.text, row.text, task.answer) for task, row in pairs if row.text]
        assert recording.judge.asked[step] == expected
        found = [judge_answer(task.answer, row.text) if row.text else 0 for task, row in pairs]
        assert [row.verdict for _, row in pairs] == found
    every = [row.verdict for step in recording.rows for rows in step for row in rows[:GROUP]]
    assert {0, 1, None} == set(every)


def check_plain(recording: Recording, folder: Path, recipe: Recipe) -> None:
    """Logits, rewards, advantages, rates, and all weights after each step."""
    start = copy_weights(Vlm(folder / "data" / "warm_start").net)
    critic = None
    if recipe.critic != "absent":
        pretrained = load_file(folder / "data" / "discriminator" / "discriminator.safetensors")
        critic = Critic(folder / "data" / "warm_start", pretrained)
    plain = Plain(folder / "data" / "warm_start", critic, recipe)
    updates = []
    for step, tasks in enumerate(asked_tasks(recording)):
        found = plain.step(step, tasks, recording.rows[step])
        check_samples(recording, step, tasks, found)
        check_history(recording.history[step], found, recipe.rates[step])
        after = plain.student.net.state_dict()
        compare(recording.student.pushes[step], after, start)
        if critic is not None:
            compare(recording.critics[step], critic.net.state_dict(), pretrained)
            updates += [("discriminator", recipe.critic_rate)] * recipe.mu
        updates += [("student", recipe.rates[step])] * recipe.mu
    assert len(recording.student.pushes) == STEPS
    assert [name for name, _ in recording.updates] == [name for name, _ in updates]
    assert [rate for _, rate in recording.updates] == pytest.approx([rate for _, rate in updates])
    for name, value in start.items():
        assert torch.equal(recording.reference[name], value), f"the reference moved: {name}"
        if name.startswith(VISION):
            assert torch.equal(recording.student.pushes[-1][name], value), f"a frozen part moved: {name}"


def compare(ours: Mapping[str, Tensor], plain: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
    """All weights within 1e-6, and the gap within 0.1 % of the change."""
    assert ours.keys() == plain.keys()
    worst = max(float((ours[name] - plain[name]).abs().max()) for name in plain)
    gap = sum(float((ours[name] - plain[name]).square().sum()) for name in plain) ** 0.5
    change = sum(float((plain[name] - start[name]).square().sum()) for name in plain) ** 0.5
    print(f"weights: largest difference {worst:.1e}, of the change {gap / change:.1e}")
    assert worst <= 1e-6
    assert gap <= 1e-3 * change


def check_samples(recording: Recording, step: int, tasks: Sequence[Task], found: StepNumbers) -> None:
    """The rows that stay in their groups, in order, with rewards and advantages."""
    samples = [sample for sample in recording.samples if sample["step"] == step + 1]
    expected = [(task, one) for task, group in zip(tasks, found.scored, strict=True) for one in group]
    assert [name_row(task, one.row) for task, one in expected] == [
        (sample["question_id"], sample["source"], sample["response"]) for sample in samples
    ]
    for sample, (_, one) in zip(samples, expected, strict=True):
        check_sample(sample, one)


def name_row(task: Task, row: Row) -> tuple[str, str, str]:
    return task.id, row.source, row.text


def check_sample(sample: Mapping[str, Any], one: Scored) -> None:
    if one.logit == one.logit:
        assert sample["logit"] == pytest.approx(one.logit, abs=2e-5)
    else:
        assert sample["logit"] is None
    assert sample["answer"] == one.answer
    assert sample["similarity"] == pytest.approx(one.similarity, abs=2e-5)
    assert sample["advantage"] == pytest.approx(one.advantage, abs=1e-4)


def check_history(row: Mapping[str, float], found: StepNumbers, rate: float) -> None:
    """What the curves show is what was computed."""
    assert row["loss"] == pytest.approx(found.loss, rel=1e-4, abs=1e-6)
    assert row["grad_norm"] == pytest.approx(found.norm, rel=1e-4)
    assert row["learning_rate"] == pytest.approx(rate)
    if found.kl is not None:
        assert row["kl/student"] == pytest.approx(found.kl, rel=1e-3, abs=1e-8)
    if found.critic_loss is not None:
        assert row["disc/loss"] == pytest.approx(found.critic_loss, rel=1e-4)


def check_validation(recording: Recording, folder: Path) -> None:
    """Greedy answers before and after every step; the first of the best is kept, and the last."""
    for requests in recording.student.validated:
        assert sorted(request.name for request in requests) == sorted(task.id for task in VALIDATION)
        assert all((request.n, request.sampling.max_tokens) == (1, MAX_TOKENS) for request in requests)
    expected = [{"step": step, "validation": len(RIGHT[step]) / len(VALIDATION)} for step in range(STEPS + 1)]
    assert [{"step": row["step"], "validation": row["validation"]} for row in recording.validation] == expected
    assert recording.metrics["validation"]["kept_step"] == 1
    for name, push in (("model", 0), ("last", STEPS - 1)):
        kept = Vlm(folder / "data" / "ril" / name).net.state_dict()
        for key, value in recording.student.pushes[push].items():
            assert torch.equal(kept[key], value), f"{name} is not the student after {push + 1} steps"
