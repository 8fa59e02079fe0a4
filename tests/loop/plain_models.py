"""Plain transformers models: padded rows, each with its whole prompt; positions and masks are the models' own."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize
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

    def render(self, text: str, images: int, system: str = "") -> str:
        """The conversation up to the model's turn."""
        turns: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": text}]})
        return str(self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def read(self, rendered: str, images: Sequence[bytes], endings: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The inputs of one sequence for each ending, padded on the right; the processor reads text and images."""
        opened = [Image.open(io.BytesIO(image)) for image in images]
        given = dict(self.processor(text=[rendered], images=opened or None, return_tensors="pt"))
        (prompt,) = given.pop("input_ids").tolist()
        kinds = given.pop("mm_token_type_ids", None)
        ids, given["attention_mask"] = pad([[*prompt, *ending] for ending in endings], self.tokenizer.pad_token_id)
        for name in given.keys() - {"attention_mask"}:
            given[name] = torch.cat([given[name]] * len(ids))
        if kinds is not None:
            given["mm_token_type_ids"] = nn.functional.pad(kinds, (0, ids.shape[1] - len(prompt))).expand(len(ids), -1)
        return {"input_ids": ids, **given}

    def spread(self, task: Task, responses: Sequence[Sequence[int]], temperature: float = 1.0) -> list[Tensor]:
        """log p of the whole vocabulary at each token of each response, [tokens, vocabulary] each."""
        inputs = self.read(self.render(task.text, len(task.images)), task.images, responses)
        start = inputs["attention_mask"].sum(1)[0] - len(responses[0]) - 1
        logits = self.net(**inputs, use_cache=False).logits[:, start:].float()
        found = (logits / temperature).log_softmax(-1)
        return [found[number, : len(response)] for number, response in enumerate(responses)]


class Critic(nn.Module):
    """D: the language model with a scalar head at the last token; z > 0 means student."""

    def __init__(
        self, folder: Path, weights: Mapping[str, Tensor], sees: str = "response", adapter: float | None = None
    ) -> None:
        """`folder` holds the SFT student, whose tokenizer, tower and architecture D has.

        With `adapter`, alpha / rank, its language model is the student's with an adapter.
        """
        super().__init__()
        self._vlm, self._sees = Vlm(folder), sees
        self.text = self._vlm.net.model.language_model
        self.score = nn.Linear(weights["score.weight"].shape[1], 1)
        if adapter is not None:
            adapt(self._vlm.net, self.text, weights, adapter)
            self.score.load_state_dict({name: weights[f"score.{name}"] for name in ("weight", "bias")})
            return
        own = {name: value for name, value in weights.items() if not name.startswith("vision.")}
        self.load_state_dict(own)

    def copy_trained(self) -> dict[str, Tensor]:
        """A copy of the weights that D is loaded from, as they are now."""
        adapter = copy_adapter(self.text)
        return {**adapter, **copy_weights(self.score, "score.")} if adapter else copy_weights(self)

    def rate(self, texts: Sequence[str], tasks: Sequence[Task]) -> Tensor:
        """z of each text, [texts], written to the question at the same place."""
        if self._sees == "response":
            return self._rate(texts, TURN, ())
        return torch.cat(
            [
                self._rate(
                    [text],
                    f"Question: {task.text}\n{TURN}",
                    task.images if self._sees == "question and image" else (),
                )
                for text, task in zip(texts, tasks, strict=True)
            ]
        )

    def _rate(self, texts: Sequence[str], turn: str, images: Sequence[bytes]) -> Tensor:
        before, after = self._vlm.render(turn, len(images), SYSTEM).split(MARK)
        endings = [[*self._vlm.encode(text), *self._vlm.encode(after)] for text in texts]
        inputs = self._vlm.read(before, images, endings)
        reader = self._vlm.net.model if images else self.text
        inputs = inputs if images else {name: inputs[name] for name in ("input_ids", "attention_mask")}
        hidden = reader(**inputs, use_cache=False).last_hidden_state
        last = inputs["attention_mask"].sum(1) - 1
        return self.score(hidden[torch.arange(len(texts)), last]).float().squeeze(1)


def pad(sequences: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Pads on the right; returns ids and attention mask, both [sequences, longest]."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*one, *[filler] * (longest - len(one))] for one in sequences])
    return ids, torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in sequences])


def copy_weights(net: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """A copy of all weights by name; of a layer with an adapter, of the sum."""
    found = {}
    for name, value in net.state_dict().items():
        layer, adapted, _ = name.partition(".parametrizations.")
        weight = net.get_submodule(layer).weight.detach() if adapted else value
        found[prefix + (f"{layer}.weight" if adapted else name)] = weight.clone()
    return found


class LowRank(nn.Module):
    """W + B A alpha / rank (LoRA, arXiv 2106.09685)."""

    def __init__(self, first: Tensor, second: Tensor, scale: float) -> None:
        super().__init__()
        self.first, self.second, self.scale = nn.Parameter(first.clone()), nn.Parameter(second.clone()), scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.second @ self.first * self.scale


def adapt(net: nn.Module, text: nn.Module, weights: Mapping[str, Tensor], scale: float) -> None:
    """Freezes `net` and adds adapters, whose matrices are `<layer of text>.lora_A.weight` and `lora_B` of `weights`."""
    net.requires_grad_(False)
    for name, first in weights.items():
        layer, found, _ = name.partition(".lora_A.")
        if found:
            low_rank = LowRank(first, weights[f"{layer}.lora_B.weight"], scale)
            parametrize.register_parametrization(text.get_submodule(layer), "weight", low_rank)


def copy_adapter(text: nn.Module) -> dict[str, Tensor]:
    """A copy of the matrices of all adapters, named as in `adapt`."""
    named = [(name, one) for name, one in text.named_modules() if isinstance(one, LowRank)]
    layers = [(name.partition(".parametrizations.")[0], one) for name, one in named]
    return {f"{layer}.lora_A.weight": one.first.detach().clone() for layer, one in layers} | {
        f"{layer}.lora_B.weight": one.second.detach().clone() for layer, one in layers
    }


def freeze_vision(net: nn.Module) -> None:
    """The tower and the projector are not trained (Table 5c lists language parts only)."""
    for name, weight in net.named_parameters():
        weight.requires_grad_(not name.startswith(VISION))


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
