"""Files and keys that other tools read, beside those that transformers 5 writes.

transformers 4, the converter of llama.cpp and tools built on either look for the names that checkpoints on the hub
have: preprocessor_config.json, chat_template.json, vocab.json, merges.txt, and rope_theta, rope_scaling and torch_dtype
in config.json. transformers 5 reads its own first, and those hold the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.job.files import read_json, write_json, write_text
from stages.vlm.stored_tensors import read_stored_tensors

_EDGES = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}  # names of transformers 5 and 4 of an area
# Named special tokens of every tokenizer; others are of one family, and a mapping of their own in transformers 4.
_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def write_published_files(folder: Path) -> None:
    """Completes a checkpoint folder that `save_pretrained` of model and processor have written."""
    _complete_config(folder)
    _complete_tokenizer(folder)
    _complete_processor(folder)


def _complete_config(folder: Path) -> None:
    """Says in config.json under the older names what it says, and whether the head is the embeddings.

    Head and embeddings are one matrix if no head is stored. transformers writes its default where a config does not say
    it at the top, and that of InternVL is wrong for a head of its own.
    """
    config = read_json(folder / "config.json")
    tied = not any(one.name.endswith("lm_head.weight") for one in read_stored_tensors(folder))
    parts = [config, *(config[key] for key in ("text_config",) if isinstance(config.get(key), dict))]
    for part in parts:
        part["tie_word_embeddings"] = tied
        _complete_positions(part)
    if isinstance(config.get("dtype"), str):
        config["torch_dtype"] = config["dtype"]
    write_json(folder / "config.json", config)


def _complete_positions(config: dict[str, Any]) -> None:
    found = config.get("rope_parameters")
    if not isinstance(found, Mapping) or "rope_theta" not in found:  # none, or one for each kind of layer
        return
    scaling = {key: value for key, value in found.items() if key != "rope_theta"}
    config["rope_theta"] = found["rope_theta"]
    if "mrope_section" in scaling:
        scaling["type"] = "mrope"
    config["rope_scaling"] = None if scaling == {"rope_type": "default"} else scaling


def _complete_tokenizer(folder: Path) -> None:
    """Writes vocab.json and merges.txt of a byte-level BPE, and the special tokens as transformers 4 wants them."""
    model = read_json(folder / "tokenizer.json")["model"]
    if model.get("type") == "BPE":
        write_json(folder / "vocab.json", model["vocab"])
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    settings = read_json(folder / "tokenizer_config.json")
    if isinstance(settings.get("extra_special_tokens"), list):  # a mapping in transformers 4, which fails on a list
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        named = {key: value for key, value in settings.items() if key.endswith("_token") and key not in _TOKENS}
        settings |= {"extra_special_tokens": named} if named else {}
        write_json(folder / "tokenizer_config.json", settings)
    template = folder / "chat_template.jinja"
    if template.is_file():
        write_json(folder / "chat_template.json", {"chat_template": template.read_text(encoding="utf-8")})


def _complete_processor(folder: Path) -> None:
    """Writes preprocessor_config.json, and video_preprocessor_config.json where a processor has a part for videos."""
    file = folder / "processor_config.json"
    if not file.is_file():
        return
    processor = read_json(file)
    for part, name in (("image_processor", "preprocessor"), ("video_processor", "video_preprocessor")):
        if isinstance(processor.get(part), dict):
            found = {**processor[part], "processor_class": processor.get("processor_class")}
            edges = found.get("size")
            if isinstance(edges, Mapping) and set(edges) == set(_EDGES):
                found |= {_EDGES[edge]: pixels for edge, pixels in edges.items()}
            write_json(folder / f"{name}_config.json", found)
