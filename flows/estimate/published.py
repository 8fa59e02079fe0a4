"""Shapes of published models: the values of each one's config.json on the hub.

Tests compare the number of weights with the size that the hub shows for each.
"""

from flows.estimate.shapes import ModelShape, TextShape, TowerShape

QWEN_TOWER = TowerShape(1280, 32, 3420, gated=True)
LARGE_QWEN_TOWER = TowerShape(1280, 32, 3456, gated=True)  # of 32B and 72B
INTERN_TOWER = TowerShape(1024, 24, 4096, gated=False, places=1025)  # InternViT-300M
LARGE_INTERN_TOWER = TowerShape(3200, 45, 12800, gated=False, places=1025)  # InternViT-6B
SMALL_QWEN3_TOWER = TowerShape(1024, 24, 4096, gated=False, places=2304, levels=3)  # of 2B and 4B
QWEN3_TOWER = TowerShape(1152, 27, 4304, gated=False, places=2304, levels=3)


def _make_qwen2(sizes: tuple[int, int, int, int, int], vocabulary: int, tied: bool = False) -> TextShape:
    """`sizes`: width, layers, heads of queries, heads of keys, width of the feed-forward layer."""
    return TextShape(*sizes, vocabulary, tied)


def _make_qwen3(sizes: tuple[int, int, int, int, int], tied: bool = False) -> TextShape:
    return TextShape(*sizes, 151_936, tied, head_width=128, biased=False, key_norms=True)


_B0_5, _B1_5, _B3 = (896, 24, 14, 2, 4864), (1536, 28, 12, 2, 8960), (2048, 36, 16, 2, 11008)
_B7, _B14 = (3584, 28, 28, 4, 18944), (5120, 48, 40, 8, 13824)
_B32, _B72 = (5120, 64, 40, 8, 27648), (8192, 80, 64, 8, 29568)
_Q0_6, _Q1_7, _Q4 = (1024, 28, 16, 8, 3072), (2048, 28, 16, 8, 6144), (2560, 36, 32, 8, 9728)
_Q8, _Q14, _Q32 = (4096, 36, 32, 8, 12288), (5120, 40, 40, 8, 17408), (5120, 64, 64, 8, 25600)
_SMOL = {"135M": (576, 30, 9, 3, 1536), "360M": (960, 32, 15, 5, 2560), "1.7B": (2048, 24, 32, 32, 8192)}
_INTERN = 151_674  # rows of InternVL3's embeddings

# https://huggingface.co/<name>/raw/main/config.json
PUBLISHED: dict[str, ModelShape] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": ModelShape(_make_qwen2(_B3, 151_936, tied=True), QWEN_TOWER),
    "Qwen/Qwen2.5-VL-7B-Instruct": ModelShape(_make_qwen2(_B7, 152_064), QWEN_TOWER),
    "Qwen/Qwen2.5-VL-32B-Instruct": ModelShape(_make_qwen2(_B32, 152_064), LARGE_QWEN_TOWER),
    "Qwen/Qwen2.5-VL-72B-Instruct": ModelShape(_make_qwen2(_B72, 152_064), LARGE_QWEN_TOWER),
    "OpenGVLab/InternVL3-1B-hf": ModelShape(_make_qwen2(_B0_5, _INTERN), INTERN_TOWER),
    "OpenGVLab/InternVL3-2B-hf": ModelShape(_make_qwen2(_B1_5, _INTERN), INTERN_TOWER),
    "OpenGVLab/InternVL3-8B-hf": ModelShape(_make_qwen2(_B7, _INTERN), INTERN_TOWER),
    "OpenGVLab/InternVL3-14B-hf": ModelShape(_make_qwen2(_B14, _INTERN), INTERN_TOWER),
    "OpenGVLab/InternVL3-38B-hf": ModelShape(_make_qwen2(_B32, _INTERN), LARGE_INTERN_TOWER),
    "OpenGVLab/InternVL3-78B-hf": ModelShape(_make_qwen2(_B72, _INTERN), LARGE_INTERN_TOWER),
    "Qwen/Qwen3-VL-2B-Instruct": ModelShape(_make_qwen3(_Q1_7, tied=True), SMALL_QWEN3_TOWER),
    "Qwen/Qwen3-VL-4B-Instruct": ModelShape(_make_qwen3(_Q4, tied=True), SMALL_QWEN3_TOWER),
    "Qwen/Qwen3-VL-8B-Instruct": ModelShape(_make_qwen3(_Q8), QWEN3_TOWER),
    "Qwen/Qwen3-VL-32B-Instruct": ModelShape(_make_qwen3(_Q32), QWEN3_TOWER),
    "OpenGVLab/InternVL3_5-1B-HF": ModelShape(_make_qwen3(_Q0_6), INTERN_TOWER),
    "OpenGVLab/InternVL3_5-2B-HF": ModelShape(_make_qwen3(_Q1_7), INTERN_TOWER),
    "OpenGVLab/InternVL3_5-4B-HF": ModelShape(_make_qwen3(_Q4), INTERN_TOWER),
    "OpenGVLab/InternVL3_5-8B-HF": ModelShape(_make_qwen3(_Q8), INTERN_TOWER),
    "OpenGVLab/InternVL3_5-14B-HF": ModelShape(_make_qwen3(_Q14), INTERN_TOWER),
    "OpenGVLab/InternVL3_5-38B-HF": ModelShape(_make_qwen3(_Q32), LARGE_INTERN_TOWER),
    "Qwen/Qwen2.5-0.5B-Instruct": ModelShape(_make_qwen2(_B0_5, 151_936, tied=True)),
    "Qwen/Qwen2.5-1.5B-Instruct": ModelShape(_make_qwen2(_B1_5, 151_936, tied=True)),
    "Qwen/Qwen2.5-3B-Instruct": ModelShape(_make_qwen2(_B3, 151_936, tied=True)),
    "Qwen/Qwen2.5-7B-Instruct": ModelShape(_make_qwen2(_B7, 152_064)),
    "Qwen/Qwen2.5-14B-Instruct": ModelShape(_make_qwen2(_B14, 152_064)),
    "Qwen/Qwen2.5-32B-Instruct": ModelShape(_make_qwen2(_B32, 152_064)),
    "Qwen/Qwen2.5-72B-Instruct": ModelShape(_make_qwen2(_B72, 152_064)),
    "Qwen/Qwen3-0.6B": ModelShape(_make_qwen3(_Q0_6, tied=True)),
    "Qwen/Qwen3-1.7B": ModelShape(_make_qwen3(_Q1_7, tied=True)),
    "Qwen/Qwen3-4B": ModelShape(_make_qwen3(_Q4, tied=True)),
    "Qwen/Qwen3-8B": ModelShape(_make_qwen3(_Q8)),
    "Qwen/Qwen3-14B": ModelShape(_make_qwen3(_Q14)),
    "Qwen/Qwen3-32B": ModelShape(_make_qwen3(_Q32)),
    **{
        f"HuggingFaceTB/SmolLM2-{size}-Instruct": ModelShape(TextShape(*sizes, 49_152, tied=True, biased=False))
        for size, sizes in _SMOL.items()
    },
}
