"""What the files of a foreign checkpoint promise, compared with each other and with `models.<id>`.

All of it is known from small files and the headers of weights, so that it is told before weights are read. What is not
so would fail hours later: in the engine, at the first request, or in the middle of a training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.model import LIMITS_OF, Model
from stages.vlm.contents import RefusedCheckpoint
from stages.vlm.stored_tensors import StoredTensor

_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_FORMATS = ("F32", "F16", "BF16", "F64")
_ROUNDED = {"bf16": ("F32", "F16", "F64"), "fp32": ("F64",)}
_REMOTE = "or serve this one yourself and name it with family: remote"
_TOGETHER = "take all files from one download"


@dataclass(frozen=True)
class Facts:
    """What transformers reads in the small files of a checkpoint."""

    vocabulary: int  # vocab_size of the language model in config.json
    positions: int | None  # tokens that its positions reach, stretched ones included; None: the config does not say
    quantization: str | None  # method of quantization_config
    image_token: int | None  # id of an image token in config.json
    template: bool  # whether the tokenizer has a chat template
    end: str | None  # the token that ends an answer
    end_id: int | None
    plain: int  # ids 0 to plain - 1 are what any text can give
    known: int  # all ids of the tokenizer, added tokens included
    read_image_token: int  # id of an image token in prompts; -1 for text models
    used: dict[str, int]  # ids above `plain` that a prompt holds, by token
    banned: dict[str, int]  # ids that are never sampled, by token
    ends: list[Any]  # eos_token_id of generation_config.json, as a list; empty if it has none


def check_files_present(weights: Path, model: Model, name: str) -> None:
    """Raises RefusedCheckpoint, one line a fault, when a checkpoint has no tokenizer, or no processor for images."""
    faults = []
    if not any((weights / file).is_file() for file in _TOKENIZERS):
        faults.append(
            f"models.{name}: {weights} has no tokenizer.json; copy the tokenizer's files from the model's page"
        )
    if LIMITS_OF[model.family][0] and not any((weights / file).is_file() for file in _PROCESSORS):
        faults.append(
            f"models.{name}: family {model.family} reads images, but {weights} has no {' and no '.join(_PROCESSORS)}; "
            "copy it from the model's page, or correct the family"
        )
    _raise(faults)


def check_promises(model: Model, name: str, facts: Facts, tensors: Sequence[StoredTensor]) -> list[str]:
    """Returns remarks on a checkpoint that can be used. Raises RefusedCheckpoint, one line a fault, for another."""
    rows = next((one.shape[0] for one in tensors if one.name.endswith("embed_tokens.weight")), facts.vocabulary)
    found = [
        *_iter_chat_faults(facts, rows),
        *_iter_weight_faults(facts, tensors),
        *_iter_vocabulary_faults(facts, rows),
    ]
    if facts.positions is not None and model.context_tokens > facts.positions:
        found.append(
            f"context_tokens is {model.context_tokens:,}, but the positions of config.json (max_position_embeddings) "
            f"reach {facts.positions:,} tokens; lower context_tokens"
        )
    _raise([f"models.{name}: {fault}" for fault in found])
    rounded = sorted({one.format for one in tensors} & set(_ROUNDED[model.precision]))
    return [
        f"weights stored as {format_} are rounded to precision {model.precision}; set another precision if that matters"
        for format_ in rounded
    ]


def _iter_chat_faults(facts: Facts, rows: int) -> Iterator[str]:
    if not facts.template:
        yield (
            "the tokenizer has no chat template; add chat_template.jinja from the model's page, or use a model that "
            "was trained on chats (often named -Instruct)"
        )
    if facts.end is None or facts.end_id is None:
        yield "tokenizer_config.json has no eos_token; set it to the token that ends the model's turns"
        return
    for given in facts.ends:
        if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < min(facts.known, rows):
            yield (
                f"generation_config.json: eos_token_id {given!r} is no token of this model (ids 0 to "
                f"{min(facts.known, rows) - 1}); {_TOGETHER}"
            )
    if facts.ends and facts.end_id not in facts.ends:
        yield (
            f"the tokenizer's eos_token is {facts.end!r} ({facts.end_id}), but generation_config.json ends answers at "
            f"eos_token_id {facts.ends}; set eos_token in tokenizer_config.json to the token that ends the "
            "model's turns"
        )


def _iter_weight_faults(facts: Facts, tensors: Sequence[StoredTensor]) -> Iterator[str]:
    if facts.quantization is not None:
        yield (
            f"config.json: quantization_config is {facts.quantization!r}; take the checkpoint that is not quantized, "
            f"{_REMOTE}"
        )
    elif other := next((one for one in tensors if one.format not in _FORMATS), None):
        yield (
            f"{other.file}: {other.name} is stored as {other.format}, not as {', '.join(_FORMATS)}; take the "
            f"checkpoint that is not quantized, {_REMOTE}"
        )
    for one in tensors:
        if one.name.endswith(("embed_tokens.weight", "lm_head.weight")) and one.shape[:1] != (facts.vocabulary,):
            yield (
                f"{one.file}: {one.name} has {one.shape[0] if one.shape else 1:,} rows, but vocab_size in config.json "
                f"is {facts.vocabulary:,}; {_TOGETHER}"
            )


def _iter_vocabulary_faults(facts: Facts, rows: int) -> Iterator[str]:
    if facts.plain > rows:
        yield (f"the tokenizer gives ids up to {facts.plain - 1:,}, but the embeddings have {rows:,} rows; {_TOGETHER}")
    for token, number in facts.used.items():
        if number >= rows:
            yield f"prompts hold {token!r} ({number:,}), but the embeddings have {rows:,} rows; {_TOGETHER}"
    for token, number in facts.banned.items():
        if number >= rows and token not in facts.used:
            yield (
                f"{token!r} ({number:,}) is never to be sampled, but the embeddings have {rows:,} rows and engines "
                "refuse the ban; remove the token from the tokenizer's files"
            )
    if facts.image_token is not None and facts.read_image_token not in (-1, facts.image_token):
        yield (
            f"config.json: image_token_id is {facts.image_token:,}, but the tokenizer's is {facts.read_image_token:,}; "
            f"{_TOGETHER}"
        )


def _raise(faults: Sequence[str]) -> None:
    if faults:
        raise RefusedCheckpoint("\n".join(faults))
