"""Shapes of models, with the number of their weights, from a config.json as transformers writes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.config.build import Build
from stages.config.lora import Target

PATCH_VALUES = 3 * 14 * 14  # of a patch in one frame; Qwen3-VL has 3 x 16 x 16, a third more
PATCHES_PER_TOKEN = 4  # all families merge 2 x 2 patches to one token

# Tokens of the tiny tokenizers, which stop early if their texts have no more (stages/tiny/builds/shapes.py).
TINY_VOCABULARY = {"qwen2_5_vl": 512, "qwen3_vl": 512, "internvl3": 640, "text": 1024, "qwen2_5": 1024}
_TINY_PLACES = {"internvl3": 37, "qwen3_vl": 64}  # learned positions of the tiny towers
_TINY_LEVELS = 3


@dataclass(frozen=True)
class TextShape:
    """A language model of the kind of Qwen2, Qwen3 or Llama."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    feed_forward: int
    vocabulary: int
    tied: bool = False  # embeddings and head are one matrix
    head_width: int = 0  # of one attention head; 0: hidden / heads
    biased: bool = True  # queries, keys and values have a bias (Qwen2)
    key_norms: bool = False  # norms of queries and of keys (Qwen3)

    @property
    def width(self) -> int:
        """Width of one attention head."""
        return self.head_width or self.hidden // self.heads

    @property
    def key_width(self) -> int:
        """Width of all keys of a token in one layer, and of all values."""
        return self.key_heads * self.width

    @property
    def query_width(self) -> int:
        """Width of all queries of a token in one layer."""
        return self.heads * self.width

    def list_matrices(self) -> dict[Target, tuple[int, int]]:
        """Returns inputs and outputs of each linear layer of one layer."""
        hidden, queries, keys, inner = self.hidden, self.query_width, self.key_width, self.feed_forward
        return {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def layer_weights(self) -> int:
        """Weights of one layer, with its norms and the biases of queries, keys and values."""
        matrices = sum(inputs * outputs for inputs, outputs in self.list_matrices().values())
        biases = (self.query_width + 2 * self.key_width) * self.biased
        return matrices + 2 * self.hidden + biases + 2 * self.width * self.key_norms

    @property
    def head_weights(self) -> int:
        """Weights of the vocabulary head, which may be those of the embeddings."""
        return self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All weights with embeddings, without a head of its own."""
        return self.layers * self.layer_weights + self.head_weights + self.hidden

    def count_adapter(self, rank: int, targets: Sequence[Target]) -> int:
        """Returns the weights of an adapter of this rank beside `targets`."""
        matrices = self.list_matrices()
        return self.layers * rank * sum(sum(matrices[target]) for target in targets)


@dataclass(frozen=True)
class TowerShape:
    """A vision tower; `gated`: Qwen2.5-VL's feed-forward of three matrices, else two."""

    hidden: int
    layers: int
    feed_forward: int
    gated: bool
    places: int = 0  # learned positions, which Qwen2.5-VL does not have
    levels: int = 0  # layers of Qwen3-VL's tower, beside the last, whose features the language model gets

    def count_weights(self, out: int) -> int:
        """Returns the weights of tower and projector to the width `out` of the language model."""
        hidden, inner, merged = self.hidden, self.feed_forward, PATCHES_PER_TOKEN * self.hidden
        layer = 4 * hidden * hidden + (3 if self.gated else 2) * hidden * inner
        projector = (merged + 1) * merged + (merged + 1) * out
        if self.gated:
            return self.layers * (layer + 7 * hidden + 2 * inner) + projector + hidden + 2 * PATCH_VALUES * hidden
        if self.levels:
            frames = 2 * 3 * 16 * 16 * hidden + hidden
            mergers = projector + 2 * hidden + self.levels * (projector + 2 * merged)
            return self.layers * (layer + 9 * hidden + inner) + mergers + frames + self.places * hidden
        projector = 2 * merged + (merged + 1) * out + (out + 1) * out
        places = (self.places + 2) * hidden  # with the class token, and the bias of patches
        return self.layers * (layer + 11 * hidden + inner) + projector + PATCH_VALUES * hidden + places

    def count_undivided(self, out: int) -> int:
        """Returns the weights that vLLM has whole on each GPU of a replica: InternViT's attention and projector."""
        if self.gated or self.levels:
            return 0
        return self.layers * 4 * self.hidden * self.hidden + (PATCHES_PER_TOKEN * self.hidden + out) * out


@dataclass(frozen=True)
class ModelShape:
    """A language model with its vision tower; text models have none."""

    text: TextShape
    tower: TowerShape | None = None

    @property
    def tower_weights(self) -> int:
        """Weights of the vision tower with its projector."""
        return 0 if self.tower is None else self.tower.count_weights(self.text.hidden)

    @property
    def weights(self) -> int:
        """All weights."""
        return self.text.weights + (0 if self.text.tied else self.text.head_weights) + self.tower_weights


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """Returns the shape that a config.json describes, of old and new versions of transformers.

    Raises KeyError for a key that is missing.
    """
    text = config.get("text_config", config)
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    kind = str(text.get("model_type") or config["model_type"])
    threes = kind.startswith("qwen3")
    language = TextShape(
        text["hidden_size"],
        text["num_hidden_layers"],
        text["num_attention_heads"],
        text.get("num_key_value_heads") or text["num_attention_heads"],
        text["intermediate_size"],
        text["vocab_size"],
        tied=tied,
        head_width=text.get("head_dim") or 0,
        biased=kind.startswith("qwen2") or bool(text.get("attention_bias")),
        key_norms=threes,
    )
    vision = config.get("vision_config")
    return ModelShape(language, None if vision is None else _read_tower(vision))


def _read_tower(vision: Mapping[str, Any]) -> TowerShape:
    if "num_hidden_layers" in vision:  # InternViT
        (side, *_), (patch, *_) = (_list_sides(vision[key]) for key in ("image_size", "patch_size"))
        sizes = vision["hidden_size"], vision["num_hidden_layers"], vision["intermediate_size"]
        return TowerShape(*sizes, gated=False, places=(side // patch) ** 2 + 1)
    sizes = vision["hidden_size"], vision["depth"], vision["intermediate_size"]
    if levels := vision.get("deepstack_visual_indexes"):
        return TowerShape(*sizes, gated=False, places=vision["num_position_embeddings"], levels=len(levels))
    return TowerShape(*sizes, gated=True)


def _list_sides(given: int | Sequence[int]) -> Sequence[int]:
    return [given] if isinstance(given, int) else given


def make_tiny_shape(family: str, build: Build) -> ModelShape:
    """Returns what `build_tiny` makes, with as many tokens as its tokenizer may have."""
    judge = family in ("text", "qwen2_5")
    text = TextShape(
        build.hidden_size,
        build.layers,
        build.heads,
        build.heads if judge else build.key_heads,
        2 * build.hidden_size,
        TINY_VOCABULARY[family],
        biased=family != "qwen3_vl",
        key_norms=family == "qwen3_vl",
    )
    if judge:
        return ModelShape(text)
    levels = min(_TINY_LEVELS, build.layers, build.vision_layers) if family == "qwen3_vl" else 0
    sizes = build.vision_hidden_size, build.vision_layers, 3 * build.vision_hidden_size
    tower = TowerShape(*sizes, gated=family == "qwen2_5_vl", places=_TINY_PLACES.get(family, 0), levels=levels)
    return ModelShape(text, tower)
