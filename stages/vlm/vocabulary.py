"""Ids that a model knows, by the rows of its embeddings, and those that end its answers.

A tokenizer may have more tokens than that: `<video>` of the published InternVL3-hf is token 151674, and its embeddings
have the rows 0 to 151673.
"""

import json
from pathlib import Path
from typing import Any


def count_embeddings(weights: Path) -> int:
    """Returns the number of token ids of a checkpoint, from its config.json; loading the weights checks it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(weights, trust_remote_code=False, local_files_only=True)
    return int(config.get_text_config(decoder=True).vocab_size)


def read_ends(weights: Path) -> list[Any]:
    """Returns `eos_token_id` of generation_config.json as a list, empty if there is none.

    Stage `model` refuses a foreign checkpoint in which one of them is no id of the model (`check_promises`).
    """
    file = weights / "generation_config.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    if found is None:
        return []
    return found if isinstance(found, list) else [found]
