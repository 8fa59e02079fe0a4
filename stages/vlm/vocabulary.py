"""The rows of a checkpoint's embeddings: ids that the model knows.

A tokenizer may have more tokens than that: `<video>` of the published InternVL3-hf is token 151674, and its embeddings
have the rows 0 to 151673.
"""

from pathlib import Path


def count_embeddings(weights: Path) -> int:
    """Returns the number of token ids of a checkpoint, from its config.json; loading the weights checks it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(weights, trust_remote_code=False, local_files_only=True)
    return int(config.get_text_config(decoder=True).vocab_size)
