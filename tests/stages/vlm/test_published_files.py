"""What comes out has the files and keys that other tools read, and says the same in them."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stages.training.trainer import save_weights
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.published_files import write_published_files
from stages.vlm.reader import load_network, load_reader

BUFFER = io.BytesIO()
Image.linear_gradient("L").resize((90, 70)).convert("RGB").save(BUFFER, "PNG")
MESSAGES = [{"role": "user", "content": "<image>What is 3 and 8?"}]


def read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


@pytest.fixture
def saved(tiny: Callable[[str], Checkpoint], family: str, tmp_path: Path) -> Path:
    """A checkpoint as stages write it."""
    source = tiny(family)
    reader = load_reader(source)
    save_weights(load_network(source, reader).model, tmp_path / "saved")
    reader.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_older_names_say_the_same(saved: Path, family: str) -> None:
    write_published_files(saved)
    processor = read(saved / "processor_config.json")["image_processor"]
    older = read(saved / "preprocessor_config.json")
    assert {key: older[key] for key in processor} == processor
    assert older["processor_class"] == read(saved / "processor_config.json")["processor_class"]
    if "shortest_edge" in processor["size"]:
        edges = processor["size"]
        assert (older["min_pixels"], older["max_pixels"]) == (edges["shortest_edge"], edges["longest_edge"])
    tokenizer = read(saved / "tokenizer.json")["model"]
    assert read(saved / "vocab.json") == tokenizer["vocab"]
    merges = (saved / "merges.txt").read_text().splitlines()
    assert [tuple(line.split(" ")) for line in merges[1:]] == [tuple(pair) for pair in tokenizer["merges"]]
    template = (saved / "chat_template.jinja").read_text()
    assert read(saved / "chat_template.json") == {"chat_template": template}
    config = read(saved / "config.json")
    assert config["torch_dtype"] == config["dtype"] == "float32"
    text = config["text_config"]
    assert text["rope_theta"] == text["rope_parameters"]["rope_theta"]
    if family != "internvl3":
        assert text["rope_scaling"]["mrope_section"] == text["rope_parameters"]["mrope_section"]
        assert text["rope_scaling"]["type"] == "mrope"
    else:
        assert text["rope_scaling"] is None
        settings = read(saved / "tokenizer_config.json")
        assert settings["extra_special_tokens"]["start_image_token"] == "<img>"
    assert isinstance(read(saved / "tokenizer_config.json").get("extra_special_tokens", {}), dict)


def test_the_model_is_the_same_with_them(saved: Path, family: str) -> None:
    """transformers 5 reads its own files; prompts, pixels, config and weights are those of before."""
    before = Path(shutil.copytree(saved, saved.with_name("before")))
    write_published_files(saved)
    found = []
    for folder in (before, saved):
        card = Checkpoint(folder, folder, family, "fp32", 256, "")
        reader = load_reader(card)
        network = load_network(card, reader)
        prompt = reader.make_prompt(MESSAGES, [BUFFER.getvalue()])
        assert prompt.pixels is not None
        features = network.encode_images(prompt.pixels)
        hidden = network.compute_hidden(prompt.ids, prompt.positions, None, features)
        assert network.head.weight is not network.text.embed_tokens.weight
        found.append((prompt.ids, prompt.positions, prompt.pixels.values, hidden, reader.chat.template_hash))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.mark.parametrize("tied", [True, False])
def test_the_config_says_whether_the_head_is_the_embeddings(saved: Path, tied: bool) -> None:
    """The stored tensors decide: the config of InternVL says `true` at the top by default, whatever its head is."""
    config = read(saved / "config.json")
    (saved / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": not tied}))
    if tied:
        tensors = load_file(saved / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("lm_head.weight")}
        assert len(kept) == len(tensors) - 1
        save_file(kept, saved / "model.safetensors", {"format": "pt"})
    write_published_files(saved)
    config = read(saved / "config.json")
    assert config["tie_word_embeddings"] is tied
    assert config["text_config"]["tie_word_embeddings"] is tied


def test_generation_settings_are_kept(tiny: Callable[[str], Checkpoint], family: str, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny(family).weights, tmp_path / "source"))
    given = {
        "eos_token_id": [1, 2],
        "pad_token_id": 3,
        "do_sample": True,
        "temperature": 0.5,
        "repetition_penalty": 1.05,
    }
    (source / "generation_config.json").write_text(json.dumps(given))
    card = Checkpoint(source, source, family, "fp32", 256, "")
    reader = load_reader(card)
    save_weights(load_network(card, reader).model, tmp_path / "saved")
    reader.save(tmp_path / "saved")
    write_published_files(tmp_path / "saved")
    kept = read(tmp_path / "saved" / "generation_config.json")
    assert {key: kept[key] for key in given} == given
