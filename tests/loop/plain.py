"""RIL written from the paper (arXiv 2510.19307): Algorithm 2, Eq. 1, the rewards of section 3.3, Eq. 2, and SFT.

Nothing here imports `stages`. Models are plain transformers models that compute positions and masks themselves. Each
row is a sequence of its own with its whole prompt, padded on the right. torch's AdamW updates the weights.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

VISION = ("model.visual.", "model.vision_tower.", "model.multi_modal_projector.")  # towers with their projectors
# The prompt of D (Fig. 3, reworded); the text stands in place of the mark.
MARK = "\x00"
SYSTEM = (
    "You act as a discriminator. A response is given inside <response> </response>. "
    "Say which model wrote it: 0 = teacher, 1 = student."
)
TURN = f"Which model wrote this response? Choose 0 (Teacher model) or 1 (Student model).\n<response>{MARK}</response>"


@dataclass(frozen=True)
class Task:
    """A question."""

    id: str
    text: str
    images: tuple[bytes, ...]
    answer: str
    target: str | None = None


@dataclass(frozen=True)
class Row:
    """A response: source "student" or a teacher's id, finish "stop" or "length"; verdict None is a failed one."""

    source: str
    text: str
    ids: tuple[int, ...]
    finish: str
    verdict: int | None


@dataclass(frozen=True)
class Recipe:
    """What a run is asked to do; the defaults are the paper's."""

    rates: tuple[float, ...]  # of the student in each step
    critic_rate: float
    max_tokens: int
    temperature: float = 1.0
    kl_weight: float = 0.01
    mu: int = 1
    clip: float = 0.2
    similarity_weight: float = 1.0
    answer_weight: float = 1.0
    similarity: Literal["sign", "negative logit"] = "sign"
    teachers: Literal["as student", "cross entropy", "when all wrong", "none"] = "as student"
    baseline: Literal["all", "own side"] = "all"
    divides_by_deviation: bool = False  # GRPO
    mean_over_row: bool = False  # GRPO; else a sum over the row, divided by max_tokens
    pairs: bool = False  # D learns from pairs (Bradley-Terry)
    critic: Literal["learns, scores", "scores, learns", "scores", "absent"] = "learns, scores"

    @property
    def judges(self) -> bool:
        """Whether the reward needs verdicts."""
        return self.answer_weight > 0


@dataclass(frozen=True)
class Scored:
    """A row that takes part in the update."""

    row: Row
    logit: float
    similarity: float
    answer: int
    advantage: float
    imitates: bool = False  # cross entropy with the advantage as its weight, in place of the policy's gain


class Vlm:
    """A vision-language model with its processor."""

    def __init__(self, folder: Path) -> None:
        self.net: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.tokenizer = self.processor.tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_response(self, text: str) -> tuple[int, ...]:
        """Token ids of a whole response: it ends with the end of the turn."""
        return (*self.encode(text), self.tokenizer.eos_token_id)

    def read(self, task: Task) -> dict[str, Tensor]:
        """The inputs of one prompt, made by the processor."""
        parts = [*({"type": "image"} for _ in task.images), {"type": "text", "text": task.text}]
        said = self.processor.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        images = [Image.open(io.BytesIO(image)) for image in task.images]
        return dict(self.processor(text=[said], images=images or None, return_tensors="pt"))

    def log_probs(self, task: Task, responses: Sequence[Sequence[int]], temperature: float = 1.0) -> list[Tensor]:
        """log p of the tokens of each response, [tokens] each."""
        given = self.read(task)
        (prompt,) = given.pop("input_ids").tolist()
        del given["attention_mask"]
        kinds = given.pop("mm_token_type_ids", None)
        ids, mask = pad([[*prompt, *response] for response in responses], self.tokenizer.pad_token_id)
        if kinds is not None:
            width = ids.shape[1] - len(prompt)
            given["mm_token_type_ids"] = nn.functional.pad(kinds, (0, width)).expand(len(ids), -1)
        repeated = {
            name: value if name == "mm_token_type_ids" else torch.cat([value] * len(ids))
            for name, value in given.items()
        }
        logits = self.net(input_ids=ids, attention_mask=mask, use_cache=False, **repeated).logits
        spread = (logits[:, len(prompt) - 1 : -1].float() / temperature).log_softmax(-1)
        found = spread.gather(2, ids[:, len(prompt) :, None]).squeeze(2)
        return [found[number, : len(response)] for number, response in enumerate(responses)]


class Critic:
    """D: a language model with a scalar head at the last token; z > 0 means student."""

    def __init__(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """`folder` holds the SFT student, whose tokenizer and architecture D has."""
        vlm = Vlm(folder)
        self.encode, self.tokenizer = vlm.encode, vlm.tokenizer
        self.net = nn.ModuleDict(
            {"text": vlm.net.model.language_model, "score": nn.Linear(weights["score.weight"].shape[1], 1)}
        )
        self.net.load_state_dict(weights)

    def score(self, texts: Sequence[str]) -> Tensor:
        """z of each text, [texts]."""
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": TURN}]
        said = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        before, after = map(self.encode, said.split(MARK))
        ids, mask = pad([[*before, *self.encode(text), *after] for text in texts], self.tokenizer.pad_token_id)
        hidden = self.net["text"](input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return self.net["score"](hidden[torch.arange(len(ids)), mask.sum(1) - 1]).float().squeeze(1)


def pad(sequences: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Pads on the right; returns ids and attention mask, both [sequences, longest]."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*one, *[filler] * (longest - len(one))] for one in sequences])
    return ids, torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in sequences])


class Optimizer:
    """AdamW (App. C) with gradients clipped to norm 1."""

    def __init__(self, net: nn.Module) -> None:
        self._trained = [weight for weight in net.parameters() if weight.requires_grad]
        self._adam = torch.optim.AdamW(self._trained, lr=0.0, betas=(0.9, 0.999), weight_decay=0.0)

    def step(self, loss: Tensor, rate: float) -> float:
        """One update; returns the gradient's norm."""
        self._adam.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self._trained, 1.0))
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()
        return norm


def is_taught(row: Row) -> bool:
    """Whether D learns from the row; it scores all rows."""
    return row.finish == "stop" and bool(row.text)


def critic_loss(logits: Tensor, rows: Sequence[Row], questions: Sequence[str], pairs: bool) -> Tensor:
    """Eq. 1 as a loss: cross entropy with label 1 for the student; or -log sigma(z_s - z_t) over pairs of a question."""
    student = [row.source == "student" for row in rows]
    if pairs:
        gaps = [
            logits[own] - logits[other]
            for own in range(len(rows))
            for other in range(len(rows))
            if student[own] and not student[other] and questions[own] == questions[other]
        ]
        return -nn.functional.logsigmoid(torch.stack(gaps)).mean()
    return -torch.stack(
        [nn.functional.logsigmoid(logit if wrote else -logit) for logit, wrote in zip(logits, student, strict=True)]
    ).mean()


def score_rows(rows: Sequence[Row], logits: Sequence[float], recipe: Recipe) -> list[Scored]:
    """R = 1[D < 0.5] + verdict and A = R - mean of all 2G (section 3.3), or as the recipe says."""
    pairs = [(row, z) for row, z in zip(rows, logits, strict=True) if row.verdict is not None or not recipe.judges]
    answered = [row.source == "student" and row.finish == "stop" and row.verdict == 1 for row, _ in pairs]
    if recipe.teachers == "none" or (recipe.teachers == "when all wrong" and any(answered)):
        pairs = [(row, z) for row, z in pairs if row.source == "student"]
    answers = [int(row.finish == "stop" and row.verdict == 1) for row, _ in pairs]
    similarities = [0.0 if math.isnan(z) else float(z < 0) if recipe.similarity == "sign" else -z for _, z in pairs]
    rewards = [
        recipe.similarity_weight * alike + recipe.answer_weight * right
        for alike, right in zip(similarities, answers, strict=True)
    ]
    imitated = [recipe.teachers == "cross entropy" and row.source != "student" for row, _ in pairs]

    def advantage(place: int) -> float:
        if imitated[place]:
            return rewards[place] / (recipe.similarity_weight + recipe.answer_weight)
        ours = pairs[place][0].source == "student"
        others = [
            reward
            for reward, left_out, (row, _) in zip(rewards, imitated, pairs, strict=True)
            if not left_out and (recipe.baseline == "all" or (row.source == "student") == ours)
        ]
        centre = sum(others) / len(others)
        if not recipe.divides_by_deviation or len(others) < 2:
            return rewards[place] - centre
        deviation = math.sqrt(sum((one - centre) ** 2 for one in others) / (len(others) - 1))
        return (rewards[place] - centre) / (deviation + 1e-6)

    return [
        Scored(row, z, similarities[place], answers[place], advantage(place), imitated[place])
        for place, (row, z) in enumerate(pairs)
    ]


@dataclass
class StepNumbers:
    """What a step measured."""

    logits: list[float] = field(default_factory=list)  # of all rows of the step in order
    scored: list[list[Scored]] = field(default_factory=list)  # by question
    loss: float = 0.0  # of the first inner update
    norm: float = 0.0
    kl: float | None = None  # k3, mean over the student's tokens
    critic_loss: float | None = None


class Plain:
    """The loop of Algorithm 2 on plain models."""

    def __init__(self, folder: Path, critic: Critic | None, recipe: Recipe) -> None:
        """`folder` holds the SFT student: the policy and the reference start as it."""
        self.recipe, self.critic = recipe, critic
        self.student, self.reference = Vlm(folder), Vlm(folder)
        for name, weight in self.student.net.named_parameters():
            weight.requires_grad_(not name.startswith(VISION))
        self._optimizer = Optimizer(self.student.net)
        self._critic_optimizer = Optimizer(critic.net) if critic else None

    def step(self, number: int, tasks: Sequence[Task], groups: Sequence[Sequence[Row]]) -> StepNumbers:
        """Lines 5 to 7 of Algorithm 2 on the rows of each question."""
        numbers = StepNumbers()
        rows = [(row, task.id) for task, group in zip(tasks, groups, strict=True) for row in group]
        numbers.logits = [math.nan] * len(rows)
        for does in self.recipe.critic.split(", ") if self.critic else ():
            if does == "learns":
                numbers.critic_loss = self._teach_critic(rows)
            else:
                numbers.logits = self._score([row.text for row, _ in rows])
        rest = iter(numbers.logits)
        numbers.scored = [score_rows(group, [next(rest) for _ in group], self.recipe) for group in groups]
        self._update(number, tasks, numbers)
        return numbers

    @torch.no_grad()
    def _score(self, texts: Sequence[str]) -> list[float]:
        assert self.critic is not None
        return self.critic.score(texts).tolist()

    def _teach_critic(self, rows: Sequence[tuple[Row, str]]) -> float:
        assert self.critic is not None
        assert self._critic_optimizer is not None
        taught = [(row, question) for row, question in rows if is_taught(row)]
        losses = []
        for _ in range(self.recipe.mu):
            logits = self.critic.score([row.text for row, _ in taught])
            loss = critic_loss(logits, [row for row, _ in taught], [name for _, name in taught], self.recipe.pairs)
            self._critic_optimizer.step(loss, self.recipe.critic_rate)
            losses.append(float(loss.detach()))
        return losses[0]

    def _update(self, number: int, tasks: Sequence[Task], numbers: StepNumbers) -> None:
        kept = [(task, scored) for task, scored in zip(tasks, numbers.scored, strict=True) if scored]
        count = sum(len(scored) for _, scored in kept)
        old: list[list[Tensor]] = []
        reference: list[list[Tensor]] = []
        for inner in range(self.recipe.mu):
            total, kl = torch.zeros(()), []
            for place, (task, scored) in enumerate(kept):
                ids = [one.row.ids for one in scored]
                found = self.student.log_probs(task, ids, self.recipe.temperature)
                if not inner:
                    old.append([one.detach() for one in found])
                    with torch.no_grad():
                        reference.append(self.reference.log_probs(task, ids, self.recipe.temperature))
                for one, now, before, base in zip(scored, found, old[place], reference[place], strict=True):
                    gap = base - now
                    k3 = gap.exp() - gap - 1
                    kl += k3.detach().tolist() if one.row.source == "student" else []
                    terms = self._gain(one, now, before) - self.recipe.kl_weight * k3
                    total = total - (
                        terms.mean() if self.recipe.mean_over_row else terms.sum() / self.recipe.max_tokens
                    )
            total = total / count
            norm = self._optimizer.step(total, self.recipe.rates[number])
            if not inner:
                numbers.loss, numbers.norm = float(total.detach()), norm
                numbers.kl = sum(kl) / len(kl) if kl else None

    def _gain(self, one: Scored, now: Tensor, before: Tensor) -> Tensor:
        """min(rho A, clip(rho) A) of each token (Eq. 2)."""
        if one.imitates:
            return one.advantage * now
        rho = (now - before).exp()
        clipped = rho.clamp(1 - self.recipe.clip, 1 + self.recipe.clip)
        return torch.minimum(rho * one.advantage, clipped * one.advantage)


def fine_tune(folder: Path, steps: Sequence[Sequence[Task]], rates: Sequence[float]) -> tuple[Vlm, list[float]]:
    """SFT (App. C): mean cross entropy over all target tokens of a step, end of the turn included; returns losses."""
    vlm = Vlm(folder)
    optimizer, losses = Optimizer(vlm.net), []
    for tasks, rate in zip(steps, rates, strict=True):
        found = [vlm.log_probs(task, [vlm.encode_response(task.target or "")])[0] for task in tasks]
        loss = -torch.cat(found).mean()
        optimizer.step(loss, rate)
        losses.append(float(loss.detach()))
    return vlm, losses


def teach_critic(
    critic: Critic, steps: Sequence[Sequence[tuple[Row, str]]], rates: Sequence[float], pairs: bool = False
) -> list[float]:
    """The pre-training of D (section 3.2) on the rows of each step with their questions; returns losses."""
    optimizer, losses = Optimizer(critic.net), []
    for rows, rate in zip(steps, rates, strict=True):
        logits = critic.score([row.text for row, _ in rows])
        loss = critic_loss(logits, [row for row, _ in rows], [name for _, name in rows], pairs)
        optimizer.step(loss, rate)
        losses.append(float(loss.detach()))
    return losses


def copy_weights(net: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights by name."""
    return {name: value.clone() for name, value in net.state_dict().items()}
