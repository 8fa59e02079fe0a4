"""Rewards and advantages, written from the paper (section 3.3 and Eq. 2); other settings from the papers they name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Kl = Literal["k1", "k2", "k3", "full", "none"]


@dataclass(frozen=True)
class Row:
    """A response: source "student" or a teacher's id, finish "stop" or "length"; verdict None is a failed one."""

    source: str
    text: str
    ids: tuple[int, ...]
    finish: str
    verdict: int | None
    sampled: tuple[float, ...] | None = None  # log p of the ids in the engine, if it was asked for them

    @property
    def ours(self) -> bool:
        """Whether the student wrote it."""
        return self.source == "student"

    @property
    def whole(self) -> bool:
        """Whether the text ended by itself, says something, and does not end in copies of one block."""
        return self.finish == "stop" and bool(self.text.strip()) and count_copied(self.text.strip()) < 32


def count_copied(text: str) -> int:
    """The characters at the end of the text that are copies of the block before them; the first may be incomplete."""
    most = 0
    for period in range(1, len(text) // 2 + 1):
        copied = 0
        while copied + period < len(text) and text[-1 - copied] == text[-1 - copied - period]:
            copied += 1
        most = max(most, copied if copied >= period else 0)
    return most


@dataclass(frozen=True)
class Function:
    """A function of ril.rewards: its value on a row, None where it fails."""

    weight: float
    value: Callable[[Row], float | None]
    of_wrong_pays: bool = True  # else it counts for right answers only


@dataclass(frozen=True)
class Recipe:
    """What a run is asked to do; the defaults are the paper's."""

    rates: tuple[float, ...]  # of the student in each step
    critic_rate: float
    max_tokens: int
    temperature: float = 1.0
    kl_weight: float = 0.01
    mu: int = 1
    clip: tuple[float, float] = (0.2, 0.2)  # below and above 1
    similarity_weight: float = 1.0
    answer_weight: float = 1.0
    similarity: Literal["sign", "1 - D", "rank", "-z"] = "sign"
    style_of_wrong_pays: bool = True  # else similarity counts for right answers only
    broken_pay: bool = False  # whether D learns and rewards texts that are not whole
    negatives: int = 2  # broken texts a question that D learns as the student's
    cut: Literal["wrong", "without loss", "as judged"] = "wrong"
    teachers: Literal["as student", "cross entropy", "luffy", "when all wrong", "none"] = "as student"
    teacher_weight: float = 1.0  # of cross entropy
    baseline: Literal["all", "own side", "each reward"] = "all"
    divides_by_deviation: bool = False  # GRPO
    keeps_equal_groups: bool = True  # DAPO drops them
    keeps_failed_groups: bool = True  # else one failed verdict drops the whole group
    mean_over_row: bool = False  # GRPO; else a sum over the row, divided by max_tokens
    ratio: Literal["token", "sequence", "gspo"] = "token"
    largest_correction: float | None = None  # of a token's weight, p of the trainer / p of the engine; None: no weights
    kl: Kl = "k3"
    kl_on_teachers: Kl | None = None  # None: as on the student's rows
    pairs: bool = False  # D learns from pairs (Bradley-Terry)
    critic: Literal["learns, scores", "scores, learns", "scores", "absent"] = "learns, scores"
    critic_sees: Literal["response", "question", "question and image"] = "response"
    references: bool = False  # nothing is sampled: each question's target is learned
    imitates: bool = False  # nothing is sampled: G teacher answers are learned, as if all were right
    trains_vision: bool = False
    adapter: float | None = None  # alpha / rank of the policy's adapter (LoRA); None: its own weights are trained
    critic_adapter: float | None = None  # the same of D
    frozen: tuple[str, ...] = ()  # parts of names of further weights that are not trained (Table 5c)
    functions: tuple[Function, ...] = ()
    scorers: tuple[str, ...] = ()  # models whose log p pulls each token of the student (on-policy distillation)
    parses: bool = False  # in place of the judge, the last number of an answer is compared with the reference

    @property
    def judges(self) -> bool:
        """Whether the reward needs verdicts."""
        return self.answer_weight > 0 and self.samples and not self.parses

    @property
    def samples(self) -> bool:
        """Whether the student answers in the loop."""
        return not (self.references or self.imitates)


@dataclass(frozen=True)
class Scored:
    """A row that takes part in the update."""

    row: Row
    logit: float
    similarity: float
    answer: int
    advantage: float
    term: Literal["policy", "cross entropy", "luffy", "none"]  # cross entropy: the advantage is its weight


def score_rows(rows: Sequence[Row], logits: Sequence[float], recipe: Recipe) -> list[Scored]:
    """R = 1[D < 0.5] + verdict and A = R - mean of all 2G, or as the recipe says; a failed verdict leaves the group."""
    if not recipe.keeps_failed_groups and any(row.verdict is None for row in rows):
        return []
    pairs = [(row, z) for row, z in zip(rows, logits, strict=True) if row.verdict is not None or not recipe.judges]
    solved = any(row.ours and rate_answer(row, recipe) for row, _ in pairs)
    if recipe.teachers == "none" or (recipe.teachers == "when all wrong" and solved):
        pairs = [(row, z) for row, z in pairs if row.ours]
    answers = [rate_answer(row, recipe) for row, _ in pairs]
    alike = rate_similarity([z for _, z in pairs], recipe)
    if not recipe.broken_pay:
        least = min(alike, default=0.0) if recipe.similarity == "-z" else 0.0
        alike = [value if row.whole else least for value, (row, _) in zip(alike, pairs, strict=True)]
    if not recipe.style_of_wrong_pays:
        alike = [value if right else 0.0 for value, right in zip(alike, answers, strict=True)]
    weights = recipe.similarity_weight, recipe.answer_weight
    rewards = [weights[0] * one + weights[1] * right for one, right in zip(alike, answers, strict=True)]
    found = []
    for place, (row, z) in enumerate(pairs):
        term = choose_term(row, recipe)
        group = [other for other, (one, _) in enumerate(pairs) if choose_term(one, recipe) != "cross entropy"]
        if recipe.baseline == "own side":
            group = [other for other in group if pairs[other][0].ours == row.ours]
        if choose_term(row, recipe) == "cross entropy":
            advantage = recipe.teacher_weight * rewards[place] / sum(weights)
        elif recipe.baseline == "each reward":
            advantage = weights[0] * centre(place, group, alike, True) + weights[1] * centre(
                place, group, answers, True
            )
        else:
            advantage = centre(place, group, rewards, recipe.divides_by_deviation)
        for function in recipe.functions:
            advantage += function.weight * centre_known(
                place, group, [rate_function(function, *one) for one in zip(pairs, answers, strict=True)], recipe
            )
        equal = len({rewards[other] for other in group}) == 1 and term != "cross entropy"
        if recipe.keeps_equal_groups or not equal:
            found.append(Scored(row, z, alike[place], answers[place], advantage, term))
    return found


def centre(place: int, group: Sequence[int], rewards: Sequence[float], divides: bool) -> float:
    """The reward at `place` less the group's mean; GRPO divides by the standard deviation (n - 1)."""
    values = [rewards[other] for other in group]
    mean = sum(values) / len(values)
    if not divides or len(values) < 2:
        return rewards[place] - mean
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return (rewards[place] - mean) / (deviation + 1e-6)


def rate_function(function: Function, pair: tuple[Row, float], right: int) -> float | None:
    """The value of a function on a row."""
    return function.value(pair[0]) if right or function.of_wrong_pays else 0.0


def centre_known(place: int, group: Sequence[int], values: Sequence[float | None], recipe: Recipe) -> float:
    """The value at `place` less the mean of the group's rows where the function has one; 0 where it has none."""
    assert not recipe.divides_by_deviation
    known = {other: value for other in group if (value := values[other]) is not None}
    if place not in known:
        return 0.0
    order = list(known)
    return centre(
        order.index(place), range(len(order)), [known[one] for one in order], recipe.baseline == "each reward"
    )


def rate_answer(row: Row, recipe: Recipe) -> int:
    """1 if the answer is right; a cut one is wrong unless it counts as judged."""
    return int(row.verdict == 1 and (row.finish == "stop" or recipe.cut == "as judged"))


def rate_similarity(logits: Sequence[float], recipe: Recipe) -> list[float]:
    """1[D < 0.5] with D = sigma(z); 0 without D."""
    if recipe.critic == "absent":
        return [0.0] * len(logits)
    if recipe.similarity == "sign":
        return [float(1 / (1 + math.exp(-z)) < 0.5) for z in logits]
    if recipe.similarity == "1 - D":
        return [1 - 1 / (1 + math.exp(-z)) for z in logits]
    if recipe.similarity == "-z":
        return [-z for z in logits]
    return [sum(other > z for other in logits) / (len(logits) - 1) for z in logits]


def choose_term(row: Row, recipe: Recipe) -> Literal["policy", "cross entropy", "luffy", "none"]:
    """The loss of the row."""
    if row.finish != "stop" and recipe.cut == "without loss":
        return "none"
    if row.ours or recipe.teachers not in ("cross entropy", "luffy"):
        return "policy"
    return "luffy" if recipe.teachers == "luffy" else "cross entropy"
