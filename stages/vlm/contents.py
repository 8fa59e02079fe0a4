"""What a checkpoint folder of somebody else may hold: weights in safetensors, and nothing that could run.

transformers and vLLM are told `trust_remote_code=False` and read safetensors only. Here such a folder is refused before
any library opens it, with one line instead of theirs.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack")
CODE = (".py", ".pyc", ".pyd", ".so")
# What the libraries read of a folder; a hub model is downloaded without the rest.
READ = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_MOST_BYTES = 64 << 20  # of a JSON file; the largest known tokenizer.json has 33 MB
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[\w.-]+\.safetensors")


class RefusedCheckpoint(ValueError):
    """A checkpoint folder holds what this project does not load; the message names the file and the remedy."""


def check_loadable(weights: Path) -> None:
    """Raises RefusedCheckpoint when a checkpoint folder holds code, points to code, or has no safetensors weights."""
    files = sorted(file for file in weights.rglob("*") if file.is_file() or file.is_symlink())
    for file in files:
        if file.suffix.lower() in CODE:
            raise RefusedCheckpoint(
                f"{file} is code; no code of a checkpoint runs here. Use a checkpoint of a class of transformers "
                "(often named -hf), or delete the file if the model does not need it"
            )
    for file in (file for file in files if file.suffix == ".json" and file.name != _INDEX):
        value = _read_json(file)
        if place := next(_iter_references(value), None):
            raise RefusedCheckpoint(
                f"{file} has {place}, a reference to code; no code of a checkpoint runs here. Use a checkpoint of a "
                "class of transformers (often named -hf), or delete this key if the model does not need it"
            )
    names = [file.name for file in files if file.parent == weights]
    if "adapter_config.json" in names:
        raise RefusedCheckpoint(f"{weights} is an adapter (adapter_config.json); merge it into its base model first")
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if name.endswith(PICKLES)]
        found = f"{pickles[0]}, a pickle, which can run code when it is loaded" if pickles else "no weights"
        raise RefusedCheckpoint(
            f"{weights} has {found}; only safetensors are read: convert the checkpoint (save_pretrained of "
            "transformers writes them)"
        )
    _check_index(weights / _INDEX)


def _iter_references(value: Any, above: str = "") -> Iterator[str]:
    """Keys by which transformers finds classes outside the library, at any depth; without recursion."""
    waiting = [(above, value)]
    while waiting:
        where, one = waiting.pop()
        if isinstance(one, Mapping):
            for key, inner in one.items():
                if key in ("auto_map", "custom_pipelines"):
                    yield f"{where}{key}"[:200]
                waiting.append((f"{where}{key}.", inner))
        elif isinstance(one, list):
            waiting += [(f"{where}{place}.", inner) for place, inner in enumerate(one)]


def _check_index(index: Path) -> None:
    if not index.exists():
        return
    value = _read_json(index)
    shards = value.get("weight_map") if isinstance(value, Mapping) else None
    names = set(shards.values()) if isinstance(shards, Mapping) and _all_texts(shards) else None
    if names is None:
        raise RefusedCheckpoint(f"{index} has no weight_map from tensors to files; restore the checkpoint")
    for name in sorted(names):
        if not _SHARD.fullmatch(name):
            raise RefusedCheckpoint(f"{index} names {name[:80]!r}; only safetensors files of this folder are read")
        if not (index.parent / name).is_file():
            raise RefusedCheckpoint(f"{index} names {name[:80]}, which is missing; restore the checkpoint")


def _all_texts(shards: Mapping[str, Any]) -> bool:
    return all(isinstance(name, str) for name in shards.values())


def _read_json(file: Path) -> Any:
    """Returns the value of a JSON file; raises RefusedCheckpoint."""
    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        raise RefusedCheckpoint(f"{file} is no file of at most {_MOST_BYTES >> 20} MiB; restore the checkpoint")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise RefusedCheckpoint(f"{file} is not readable as JSON: {reason}; restore the checkpoint") from error
