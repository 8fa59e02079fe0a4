"""Whether a foreign checkpoint can be trained and asked here, by its config.json: its family, and how it attends.

Packs (`stages/groups/group_mask.py`) compute one kind of attention: a token sees itself and all tokens before it, in
every layer. A model that attends in another way would be trained on something that it never computes when it answers.
Text models are only asked, by vLLM, and may attend as they like.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.config.model import Model
from stages.vlm.contents import RefusedCheckpoint
from stages.vlm.family import Family

# Why no family has these model types; of further ones it is only said that no family reads them.
_BOTH_WAYS = "tokens of one image attend to each other in both directions, and packs attend backwards only"
_LINEAR = "some of its layers have linear attention, whose running state packs can't divide among answers"
_STATES = "some of its layers have a running state in place of attention, which packs can't divide among answers"
_SINKS = "its attention has sinks, which the attention of packs leaves out"
_CROSS = "its layers attend to images from the side, not as tokens of the prompt"
_EXPERTS = "its layers route tokens to experts, which no family here trains"
_CAPPED = "its attention caps scores, which that of packs does not"
_CHUNKS = "some of its layers attend within chunks, and packs have no such mask"
_ROWS = "its attention is that of packs, but its prompts name rows and columns of tiles, and no family writes these"
_ALONE = "its attention is that of packs, but an image has other tokens beside a second one, and no family counts so"
_REASONS = {
    **dict.fromkeys(("gemma3", "gemma3n", "gemma4", "gemma4_unified", "paligemma"), _BOTH_WAYS),
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "kimi_linear", "olmo_hybrid"), _LINEAR),
    **dict.fromkeys(("jamba", "mamba", "mamba2", "bamba", "falcon_h1", "falcon_mamba", "zamba2"), _STATES),
    **dict.fromkeys(("nemotron_h", "granitemoehybrid", "lfm2", "lfm2_vl", "recurrent_gemma", "rwkv"), _STATES),
    "gpt_oss": _SINKS,
    "mllama": _CROSS,
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe", "glm4v_moe", "deepseek_v3"), _EXPERTS),
    **dict.fromkeys(("gemma2", "gemma3_text"), _CAPPED),
    **dict.fromkeys(("llama4", "llama4_text"), _CHUNKS),
    **dict.fromkeys(("smolvlm", "idefics3"), _ROWS),
    "llava_onevision": _ALONE,
}
_FULL = "full_attention"
_SLIDING = "sliding_attention"


def check_supported(weights: Path, model: Model, name: str) -> None:
    """Raises RefusedCheckpoint, in one line, when a folder is not of the family of `models.<name>` or can't be trained.

    Reads config.json alone.
    """
    from stages.vlm.reader import FAMILIES  # needs torch

    file = weights / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(config, dict) or not isinstance(kind := config.get("model_type"), str):
        raise RefusedCheckpoint(f"models.{name}: {file} has no model_type; restore the checkpoint's config.json")
    family = FAMILIES[model.family]
    if family.attention == "any":
        if isinstance(config.get("vision_config"), dict):
            raise RefusedCheckpoint(f"models.{name}: {_explain_kind(file, kind, model, name, FAMILIES)}")
        return
    if kind not in family.model_types:
        raise RefusedCheckpoint(f"models.{name}: {_explain_kind(file, kind, model, name, FAMILIES)}")
    found = config.get("text_config")
    text: dict[str, Any] = found if isinstance(found, dict) else config  # a flat one has all keys in one place
    inner = text.get("model_type")
    if text is not config and inner is not None and inner not in family.text_types:
        reason = _REASONS.get(inner, f"family {family.name} has language models of {', '.join(family.text_types)}")
        said = f"{file} has a language model of model_type {inner}: {reason}"
        raise RefusedCheckpoint(f"models.{name}: {said}; {_OTHERS}")
    if fault := next(_iter_attention_faults(text, model.context_tokens, name), None):
        raise RefusedCheckpoint(f"models.{name}: {file}: {fault}")


_OTHERS = "use another checkpoint, or serve this one yourself and name it with family: remote, as a teacher or judge"


def _explain_kind(file: Path, kind: str, model: Model, name: str, families: Mapping[str, Family]) -> str:
    said = f"family is {model.family}, but {file} says model_type {kind}"
    if others := [other for other, family in families.items() if kind in family.model_types]:
        return f"{said}; set models.{name}.family to {' or '.join(others)}, or correct the model's path or name"
    if families[model.family].attention == "any":
        return f"{said}, which reads images, and {model.family} has models that read text only; {_OTHERS}"
    if reason := _REASONS.get(kind):
        return f"{said}, which can't be used here: {reason}; {_OTHERS}"
    known = ", ".join(kind for family in families.values() for kind in family.model_types)
    return f"{said}, and families that see images have {known}; {_OTHERS}"


def _iter_attention_faults(text: Mapping[str, Any], context: int, name: str) -> Iterator[str]:
    """Yields what of a language model's attention is not that of packs."""
    layers = text.get("layer_types")
    kinds = {str(one) for one in layers} if isinstance(layers, list) else {_FULL}
    if further := sorted(kinds - {_FULL, _SLIDING}):
        yield f"layer_types has {', '.join(further)}, and packs compute {_FULL} only; {_OTHERS}"
    if text.get("is_causal") is False or text.get("use_bidirectional_attention"):
        yield f"its tokens attend in both directions, and packs attend backwards only; {_OTHERS}"
    if text.get("attn_logit_softcapping"):
        yield f"attn_logit_softcapping: {_CAPPED}; {_OTHERS}"
    window = _find_window(text, layers)
    if window is not None and context > window:
        yield (
            f"layers see {window:,} tokens back (sliding_window), fewer than context_tokens ({context:,}), and packs "
            f"have no such mask; lower models.{name}.context_tokens to {window}, or {_OTHERS}"
        )


def _find_window(text: Mapping[str, Any], layers: Any) -> int | None:
    """Returns the tokens that a sliding layer sees; None if no layer slides."""
    window = text.get("sliding_window")
    if not isinstance(window, int) or isinstance(window, bool):
        return None
    if isinstance(layers, list):
        return window if _SLIDING in layers else None
    if not text.get("use_sliding_window", False):
        return None
    first, count = text.get("max_window_layers", 0), text.get("num_hidden_layers", 1)
    return None if isinstance(first, int) and isinstance(count, int) and first >= count else window
