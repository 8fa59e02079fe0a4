"""A checkpoint's processor and a checkpoint's model, ready for training: prompts in, hidden states out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.corpora.images import read_upright_size
from stages.vlm import internvl3, qwen2_5, qwen2_5_vl
from stages.vlm.chat import Chat, RemoteChat
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.family import Family, Pixels, index_families

FAMILIES = index_families(qwen2_5_vl, internvl3, qwen2_5)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Prompt:
    """A prompt as a model takes it."""

    ids: Tensor  # [tokens] int64, images expanded
    positions: Tensor  # [axes, tokens] int64
    pixels: Pixels | None


class Reader:
    """Processor side of a checkpoint: text and images to prompts."""

    def __init__(self, family: Family, processor: Any) -> None:
        self.family = family
        self._processor = processor
        self.chat = Chat(getattr(processor, "tokenizer", processor), family.vision_tokens)
        self.image_token_id = family.find_image_token_id(processor)

    def make_prompt(self, messages: Sequence[Mapping[str, str]], images: Sequence[bytes] = ()) -> Prompt:
        """The rendered conversation with images expanded and positions computed."""
        return self.make_prompts([(messages, images)])[0]

    def make_prompts(
        self, conversations: Sequence[tuple[Sequence[Mapping[str, str]], Sequence[bytes]]]
    ) -> list[Prompt]:
        """A prompt for each (messages, images); all images go through the processor at once, 8 times faster than
        singly.
        """
        flat = [image for _, images in conversations for image in images]
        every = self.family.make_pixels(self._processor, flat) if flat else None
        result, start = [], 0
        for messages, images in conversations:
            ids = self.chat.encode_prompt(messages, len(images))
            pixels = every.select(start, start + len(images)) if every is not None and images else None
            start += len(images)
            if pixels is not None:
                ids = self.family.expand(self._processor, ids, pixels)
            tensor = torch.tensor(ids, dtype=torch.long)
            result.append(Prompt(tensor, self.family.compute_positions(self._processor, tensor, pixels), pixels))
        return result

    def count_prompt_tokens(self, messages: Sequence[Mapping[str, str]], images: Sequence[bytes] = ()) -> int:
        """Tokens of `make_prompt`, for which no image is decoded: their headers tell. 0.2 ms where making the prompt
        takes 10.
        """
        ids = self.chat.encode_prompt(messages, len(images))
        if not images:
            return len(ids)
        tokens = self.family.count_image_tokens(self._processor, [read_upright_size(image) for image in images])
        return len(self.family.expand(self._processor, ids, Pixels(torch.empty(0), None, (), tokens)))

    def make_text_prompt(self, ids: Sequence[int]) -> Prompt:
        """Given ids without images as a prompt."""
        tensor = torch.tensor(list(ids), dtype=torch.long)
        return Prompt(tensor, self.family.compute_positions(self._processor, tensor, None), None)

    def make_pixels(self, images: Sequence[bytes]) -> Pixels:
        """Decoded and processed images."""
        return self.family.make_pixels(self._processor, images)

    def save(self, folder: Path) -> None:
        """Writes processor and tokenizer into `folder`, as transformers and vLLM look for them."""
        self._processor.save_pretrained(folder)


class Network:
    """Model side of a checkpoint."""

    def __init__(self, family: Family, model: nn.Module, image_token_id: int) -> None:
        self.family = family
        self.model = model
        self.image_token_id = image_token_id

    @property
    def device(self) -> torch.device:
        """Where its weights are; what it reads has to be there."""
        return next(self.model.parameters()).device

    @property
    def head(self) -> nn.Linear:
        """The vocabulary head [vocabulary, hidden]."""
        return self.model.lm_head  # type: ignore[return-value]

    def freeze_vision(self) -> None:
        """Takes the vision tower out of training."""
        for module in self.family.get_vision_modules(self.model):
            module.requires_grad_(False)

    @property
    def has_vision(self) -> bool:
        """Whether there is a vision tower."""
        return bool(self.family.get_vision_modules(self.model))

    @property
    def trains_vision(self) -> bool:
        """Whether the tower takes part in training."""
        modules = self.family.get_vision_modules(self.model)
        return any(parameter.requires_grad for module in modules for parameter in module.parameters())

    def encode_images(self, pixels: Pixels) -> Tensor:
        """Image features [image tokens, hidden]."""
        return self.family.encode_images(self.model, pixels)

    @property
    def text(self) -> nn.Module:
        """The language model without its head."""
        return self.family.get_text_model(self.model)

    def compute_hidden(self, ids: Tensor, positions: Tensor, mask: object, features: Tensor | None) -> Tensor:
        """Last hidden states [tokens, hidden] of one packed sequence.

        ids [tokens]; positions [axes, tokens]; mask is what the model's attention takes (`stages.groups` packs come
        with theirs); features are put at the image tokens in order.
        """
        embedded = self.text.embed_tokens(ids)  # type: ignore[operator]
        if features is not None:
            places = ids == self.image_token_id
            if int(places.sum()) != len(features):
                raise ValueError(f"{int(places.sum())} image tokens, {len(features)} image features")
            embedded = embedded.masked_scatter(places[:, None], features.to(embedded.dtype))
        return compute_text_hidden(self.text, embedded, positions, mask)


def compute_text_hidden(text: nn.Module, embedded: Tensor, positions: Tensor, mask: object) -> Tensor:
    """Last hidden states [tokens, hidden] of a language model over one sequence of embeddings [tokens, hidden]."""
    axes = positions[:, None] if len(positions) > 1 else positions
    masks = {"full_attention": mask, "sliding_attention": mask}
    out = text(inputs_embeds=embedded[None], position_ids=axes, attention_mask=masks, use_cache=False)
    return out.last_hidden_state[0]  # type: ignore[no-any-return]


def load_reader(checkpoint: Checkpoint) -> Reader:
    """Processor side of `checkpoint`."""
    family = FAMILIES[checkpoint.family]
    return Reader(family, family.load_processor(checkpoint.weights))


def load_chat(checkpoint: Checkpoint) -> Chat | RemoteChat:
    """Chat template and tokenizer of `checkpoint`; of a model of others only that it has none here."""
    return RemoteChat() if checkpoint.endpoint is not None else load_reader(checkpoint).chat


def load_network(checkpoint: Checkpoint, reader: Reader) -> Network:
    """Model side of `checkpoint`, in eval mode and in the checkpoint's precision."""
    family = FAMILIES[checkpoint.family]
    return Network(family, family.load_model(checkpoint.weights, DTYPES[checkpoint.precision]), reader.image_token_id)
