"""Shapes of published models, with the number of their weights.

Values are those of each model's config.json on the hub. Tests compare the sums with the sizes that the hub shows and,
for Qwen2.5-VL, with models of transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stages.config.lora import Target

PATCH_VALUES = 3 * 14 * 14
PATCHES_PER_TOKEN = 4  # both families merge 2 x 2 patches to one token


@dataclass(frozen=True)
class TextShape:
    """A language model of the Qwen2 kind."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    feed_forward: int
    vocabulary: int
    tied: bool = False  # embeddings and head are one matrix

    @property
    def key_width(self) -> int:
        """Width of all keys of a token in one layer, and of all values."""
        return self.key_heads * self.hidden // self.heads

    def list_matrices(self) -> dict[Target, tuple[int, int]]:
        """Returns inputs and outputs of each linear layer of one layer."""
        hidden, keys, inner = self.hidden, self.key_width, self.feed_forward
        return {
            "q_proj": (hidden, hidden),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (hidden, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def layer_weights(self) -> int:
        """Weights of one layer, with two norms and the biases of queries, keys and values."""
        matrices = sum(inputs * outputs for inputs, outputs in self.list_matrices().values())
        return matrices + 3 * self.hidden + 2 * self.key_width

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

    def count_weights(self, out: int) -> int:
        """Returns the weights of tower and projector to the width `out` of the language model."""
        hidden, inner, merged = self.hidden, self.feed_forward, PATCHES_PER_TOKEN * self.hidden
        layer = 4 * hidden * hidden + (3 if self.gated else 2) * hidden * inner + 7 * hidden + 2 * inner
        middle = merged if self.gated else out
        projector = hidden + (merged + 1) * middle + (middle + 1) * out
        return self.layers * layer + projector + 2 * PATCH_VALUES * hidden

    def count_undivided(self, out: int) -> int:
        """Returns the weights that vLLM has whole on each GPU of a replica: InternViT's attention and projector."""
        if self.gated:
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


QWEN_TOWER = TowerShape(1280, 32, 3420, gated=True)
LARGE_QWEN_TOWER = TowerShape(1280, 32, 3456, gated=True)  # of 32B and 72B
INTERN_TOWER = TowerShape(1024, 24, 4096, gated=False)  # InternViT-300M
LARGE_INTERN_TOWER = TowerShape(3200, 45, 12800, gated=False)  # InternViT-6B

_QWEN_3B = TextShape(2048, 36, 16, 2, 11008, 151_936, tied=True)
_QWEN_7B = TextShape(3584, 28, 28, 4, 18944, 152_064)
_QWEN_32B = TextShape(5120, 64, 40, 8, 27648, 152_064)
_QWEN_72B = TextShape(8192, 80, 64, 8, 29568, 152_064)

# https://huggingface.co/<name>/raw/main/config.json
PUBLISHED: dict[str, ModelShape] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": ModelShape(_QWEN_3B, QWEN_TOWER),
    "Qwen/Qwen2.5-VL-7B-Instruct": ModelShape(_QWEN_7B, QWEN_TOWER),
    "Qwen/Qwen2.5-VL-32B-Instruct": ModelShape(_QWEN_32B, LARGE_QWEN_TOWER),
    "Qwen/Qwen2.5-VL-72B-Instruct": ModelShape(_QWEN_72B, LARGE_QWEN_TOWER),
    "OpenGVLab/InternVL3-2B-hf": ModelShape(TextShape(1536, 28, 12, 2, 8960, 151_674), INTERN_TOWER),
    "OpenGVLab/InternVL3-8B-hf": ModelShape(TextShape(3584, 28, 28, 4, 18944, 151_674), INTERN_TOWER),
    "OpenGVLab/InternVL3-14B-hf": ModelShape(TextShape(5120, 48, 40, 8, 13824, 151_674), INTERN_TOWER),
    "OpenGVLab/InternVL3-38B-hf": ModelShape(TextShape(5120, 64, 40, 8, 27648, 151_674), LARGE_INTERN_TOWER),
    "OpenGVLab/InternVL3-78B-hf": ModelShape(TextShape(8192, 80, 64, 8, 29568, 151_674), LARGE_INTERN_TOWER),
    "Qwen/Qwen2.5-7B-Instruct": ModelShape(_QWEN_7B),
    "Qwen/Qwen2.5-32B-Instruct": ModelShape(_QWEN_32B),
    "Qwen/Qwen2.5-72B-Instruct": ModelShape(_QWEN_72B),
}
