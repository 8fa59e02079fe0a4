"""Processor and model of a checkpoint for training: prompts and hidden states."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from stages.config.image_limits import ImageLimits
from stages.config.lora import Lora, Quantization
from stages.config.runtime import GroupAttention, Runtime
from stages.corpora.images import AnyImage, read_upright_size
from stages.vlm import internvl3, qwen2_5, qwen2_5_vl, qwen3_vl, text
from stages.vlm.chat import Chat, RemoteChat
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.contents import check_loadable
from stages.vlm.family import Family, Pixels, index_families
from stages.vlm.lora import ADAPTER, Adapters
from stages.vlm.quantization import quantize_layers
from stages.vlm.text_pass import compute_text_hidden, embed
from stages.vlm.vision_attention import use_vision_attention
from stages.vlm.vocabulary import count_embeddings, read_ends

FAMILIES = index_families(qwen2_5_vl, qwen3_vl, internvl3, text, qwen2_5)
# Parts of the language model by names of parameters; all families use those of Qwen2.
PARTS = {
    "embedding": re.compile(r"^embed_tokens\."),
    "attention": re.compile(r"\.self_attn\."),
    "ffn_gate": re.compile(r"\.mlp\.gate_proj\."),
    "ffn_up": re.compile(r"\.mlp\.up_proj\."),
    "ffn_down": re.compile(r"\.mlp\.down_proj\."),
    "layer_norm": re.compile(r"(^norm|\.(input|post_attention)_layernorm)\."),
}
NO_VALUES = torch.empty(0)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt with positions and images."""

    ids: Tensor  # [tokens] int64, images expanded
    positions: Tensor  # [axes, tokens] int64
    pixels: Pixels | None


class Reader:
    """The processor of a checkpoint: converts text and images to prompts."""

    def __init__(self, family: Family, processor: Any, embeddings: int | None = None, ends: Sequence[int] = ()) -> None:
        """`embeddings` and `ends` as of `Chat`."""
        self.family = family
        self._processor = processor
        self.chat = Chat(getattr(processor, "tokenizer", processor), family.vision_tokens, embeddings, ends)
        self.image_token_id = family.find_image_token_id(processor)

    def make_prompt(self, messages: Sequence[Mapping[str, str]], images: Sequence[AnyImage] = ()) -> Prompt:
        """Returns the rendered conversation with expanded images and positions."""
        return self.make_prompts([(messages, images)])[0]

    def make_prompts(
        self, conversations: Sequence[tuple[Sequence[Mapping[str, str]], Sequence[AnyImage]]]
    ) -> list[Prompt]:
        """Returns a prompt for each (messages, images); one processor call for all images is 8 times faster."""
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
        """Counts the tokens of `make_prompt` from image headers, without decoding: 0.2 ms instead of 10 ms."""
        return self.count_tokens(messages, self.count_image_tokens([read_upright_size(image) for image in images]))

    def count_tokens(self, messages: Sequence[Mapping[str, str]], image_tokens: Sequence[int] = ()) -> int:
        """Counts the tokens of `make_prompt` for images of so many tokens each."""
        ids = self.chat.encode_prompt(messages, len(image_tokens))
        if not image_tokens:
            return len(ids)
        return len(self.family.expand(self._processor, ids, Pixels(NO_VALUES, None, (), tuple(image_tokens))))

    @property
    def image_limits(self) -> ImageLimits:
        """The limits to which images are scaled; none for text models."""
        return self.family.read_image_limits(self._processor)

    def limit_images(self, limits: ImageLimits) -> None:
        """Changes the limits to those of `limits` that are set; raises ValueError if they contradict the others."""
        if not limits.list_set():
            return  # the processor stays as its files say, to the byte when it is saved
        if fault := limits.fill(self.image_limits).find_fault():
            raise ValueError(f"limits on images: {fault}; set both in models.<id>")
        self.family.limit_images(self._processor, limits)

    def fit_images(self, tokens: int) -> ImageLimits:
        """Returns the limit at which no image takes more than `tokens`; none is set where that is so already."""
        return self.family.fit_images(self._processor, tokens)

    def make_vllm_arguments(self) -> dict[str, Any]:
        """Returns the limits on images as vLLM's `mm_processor_kwargs`."""
        return self.family.make_vllm_arguments(self._processor)

    def make_text_prompt(self, ids: Sequence[int]) -> Prompt:
        """Returns a prompt without images from token ids."""
        tensor = torch.tensor(list(ids), dtype=torch.long)
        return Prompt(tensor, self.family.compute_positions(self._processor, tensor, None), None)

    def make_pixels(self, images: Sequence[AnyImage]) -> Pixels:
        """Decodes and processes images."""
        return self.family.make_pixels(self._processor, images)

    def count_image_tokens(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Counts the tokens of images of the given (width, height)."""
        return self.family.count_image_tokens(self._processor, sizes) if sizes else ()

    def restore_pictures(self, pixels: Pixels) -> list[list[Image.Image]]:
        """Returns what the vision tower is shown of each image, as pictures: one, or one for each tile."""
        return self.family.restore_pictures(self._processor, pixels)

    def save(self, folder: Path) -> None:
        """Writes processor and tokenizer to `folder` in the format of transformers and vLLM."""
        self._processor.save_pretrained(folder)


class Network:
    """The model of a checkpoint, or that model with one of its adapters.

    Several networks can have one `model`: each selects its own adapter, or none, before it computes.
    """

    def __init__(
        self, family: Family, model: nn.Module, image_token_id: int, group_attention: GroupAttention = "auto"
    ) -> None:
        self.family = family
        self.model = model
        self.image_token_id = image_token_id
        self.group_attention: GroupAttention = group_attention
        self.quantization: Quantization = "none"
        self._adapters: Adapters | None = None  # of the model
        self._adapter: str | None = None  # that this network computes with

    def add_adapter(self, name: str, lora: Lora, seed: int) -> "Network":
        """Freezes the model and returns a network that shares it and computes with a new adapter.

        This network still computes what it did before.
        """
        if self._adapters is None:
            self._adapters = Adapters(self.model, self.text)
        self._adapters.add(name, lora, seed)
        adapted = copy.copy(self)
        adapted._adapter = name
        return adapted

    def quantize(self) -> None:
        """Stores the linear layers of the language model in NF4; for a model that stays frozen, before its adapters.

        Vision tower, embeddings, norms and head stay as they are.
        """
        quantize_layers(self.text)
        self.quantization = "nf4"

    def select_adapter(self) -> None:
        """Makes this network's adapter, or none, the active one of the model."""
        if self._adapters is not None:
            self._adapters.select(self._adapter)

    @property
    def trained(self) -> nn.Module:
        """What is trained: the weights of the adapter if there is one, else the model."""
        if self._adapters is None or self._adapter is None:
            return self.model
        return self._adapters.weights[self._adapter]

    def iter_weights(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the weights of the whole model under the names of transformers; `state` is that of `trained`.

        Those of an adapter are merged into the model's. Yields nothing if `state` is empty. All ranks must exhaust this
        together, each with its own `state`: layers beside an adapter may be divided over them.
        """
        if self._adapters is None or self._adapter is None:
            yield from state.items()
        else:
            yield from self._adapters.iter_merged(self._adapter, state)

    def save_adapter(self, state: Mapping[str, Tensor], folder: Path, base: str) -> None:
        """Writes the adapter, if there is one, to the folder `adapter` of `folder` in peft's format.

        `state` is that of `trained`; `base` names the model that the adapter belongs to.
        """
        if self._adapters is not None and self._adapter is not None:
            self._adapters.save(self._adapter, state, folder / ADAPTER, base)

    @property
    def device(self) -> torch.device:
        """Device of the weights; inputs must be on the same device."""
        return next(self.model.parameters()).device

    @property
    def head(self) -> nn.Linear:
        """The vocabulary head [vocabulary, hidden]."""
        return self.model.lm_head  # type: ignore[return-value]

    def freeze_vision(self) -> None:
        """Disables gradients of the vision tower and the projector."""
        for module in self.family.get_vision_modules(self.model):
            module.requires_grad_(False)

    def freeze_parts(self, parts: Sequence[str]) -> None:
        """Disables gradients of these parts of the language model (Table 5c; names in `PARTS`, and `head`).

        Raises ValueError for a part that the model does not have, and if one of `embedding` and `head` is named while
        they are one matrix.
        """
        tied = self.head.weight is self.text.embed_tokens.weight  # type: ignore[union-attr]
        if tied and len({"embedding", "head"} & set(parts)) == 1:
            raise ValueError(
                f"ril.frozen_parts is {', '.join(parts)}, but embedding and head of this model are one matrix; name "
                "both or none"
            )
        named = dict(self.text.named_parameters())
        for part in parts:
            found = (
                [self.head.weight] if part == "head" else [named[name] for name in named if PARTS[part].search(name)]
            )
            if not found:
                raise ValueError(f"ril.frozen_parts names {part}, but this model has no such part; remove it")
            for parameter in found:
                parameter.requires_grad_(False)

    @property
    def has_vision(self) -> bool:
        """Whether the model has a vision tower."""
        return bool(self.family.get_vision_modules(self.model))

    @property
    def trains_vision(self) -> bool:
        """Whether the vision tower is trained."""
        modules = self.family.get_vision_modules(self.model)
        return any(parameter.requires_grad for module in modules for parameter in module.parameters())

    def encode_images(self, pixels: Pixels) -> Tensor:
        """Returns image features [image tokens, n * hidden]; see `Family.encode_images`."""
        return self.family.encode_images(self.model, pixels)

    @property
    def text(self) -> nn.Module:
        """The language model without its head."""
        return self.family.get_text_model(self.model)

    def compute_hidden(self, ids: Tensor, positions: Tensor, mask: object, features: Tensor | None) -> Tensor:
        """Returns the last hidden states [tokens, hidden] of one packed sequence.

        ids [tokens] int64; positions [axes, tokens] int64; mask as in `compute_text_hidden`; features are those of the
        image tokens, in order.

        Raises ValueError when the numbers of image tokens and features differ.
        """
        self.select_adapter()
        return compute_text_hidden(self.text, embed(self.text, ids, features, self.image_token_id), positions, mask)


def load_reader(checkpoint: Checkpoint) -> Reader:
    """Loads the processor of `checkpoint` with the limits on images of its card.

    Raises RefusedCheckpoint when its folder holds code or pickles.
    """
    check_loadable(checkpoint.weights)
    family = FAMILIES[checkpoint.family]
    weights = checkpoint.weights
    reader = Reader(family, family.load_processor(weights), count_embeddings(weights), read_ends(weights))
    reader.limit_images(checkpoint.limits)
    return reader


def load_chat(checkpoint: Checkpoint) -> Chat | RemoteChat:
    """Loads chat template and tokenizer of `checkpoint`; returns a `RemoteChat` for a remote model."""
    return RemoteChat() if checkpoint.endpoint is not None else load_reader(checkpoint).chat


def load_network(
    checkpoint: Checkpoint, reader: Reader, runtime: Runtime | None = None, quantization: Quantization = "none"
) -> Network:
    """Loads the model of `checkpoint` in eval mode, in the checkpoint's precision and with the attention of `runtime`.

    With `quantization` the language model is quantized after that, so host memory holds all weights for a moment.

    Raises ValueError when the attention of the vision tower needs a package that is not installed.
    """
    family, given = FAMILIES[checkpoint.family], runtime or Runtime()
    model = family.load_model(checkpoint.weights, DTYPES[checkpoint.precision])
    for module in family.get_vision_modules(model):
        use_vision_attention(module, given.vision_attention)
    network = Network(family, model, reader.image_token_id, given.group_attention)
    if quantization == "nf4":
        network.quantize()
    return network
