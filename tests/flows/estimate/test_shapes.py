"""Shapes that are read from a config.json have the weights of the models that transformers makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.estimate.cards import CARDS
from flows.estimate.models import find_models
from flows.estimate.passes import COLUMNS_PER_TILE, ROWS_PER_TILE
from flows.estimate.shapes import TINY_VOCABULARY, read_shape
from flows.estimate.workload import count_exam
from stages.config.build import Build
from stages.config.params import Params, validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml
from stages.groups import head
from stages.judging.exam import list_exam_items
from stages.tiny.builds.shapes import build_tiny

SIZES: dict[str, Any] = {"hidden_size": 128, "layers": 3, "heads": 4, "vision_hidden_size": 64, "vision_layers": 2}
BUILD = Build(steps=0, learning_rate=1e-3, **SIZES)


def load(root: Path, changes: dict[str, Any]) -> Params:
    return validate_params(merge_params(read_yaml(root / "params.yaml"), changes))


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl3", "qwen2_5"])
def test_weights_are_those_of_the_model(root: Path, tmp_path: Path, family: str, grouped: bool) -> None:
    texts = [f"What is {number} plus {number % 7}? It is {number + number % 7}." for number in range(400)]
    sizes = SIZES | {"grouped_heads": grouped}
    _, network = build_tiny(family, BUILD.model_copy(update=sizes), texts, 256, 0, tmp_path)
    network.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    shape = read_shape(config)
    real = sum(weight.numel() for weight in network.model.parameters())
    assert shape.weights == pytest.approx(real, rel=2e-3)
    assert shape.text.vocabulary <= TINY_VOCABULARY[family]
    # The same without its files, from the build settings: but for tokens that the tokenizer did not need.
    name = "judge" if family == "qwen2_5" else "student"
    given = {
        "family": family,
        "build": {key: value for key, value in sizes.items() if name == "student" or "vision" not in key},
    }
    drawn = find_models(tmp_path, load(root, {"models": {name: given}}))[name].shape
    missing = TINY_VOCABULARY[family] - shape.text.vocabulary
    assert drawn.weights - 2 * missing * 128 == pytest.approx(real, rel=4e-3)


def test_a_folder_and_the_files_of_a_built_model_come_first(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = {"model_type": "qwen2_5_vl", "vocab_size": 300, **text}
    (folder / "config.json").write_text(json.dumps(config))
    mine = {"models": {"student": {"build": None, "path": str(folder)}}}
    found = find_models(tmp_path, load(root, mine))["student"]
    assert (found.shape.text.vocabulary, found.source) == (300, str(folder / "config.json"))
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "vocab_size"}))
    with pytest.raises(ParamsError, match="has no usable 'vocab_size', so its memory is not known"):
        find_models(tmp_path, load(root, mine))
    (folder / "config.json").write_text("{")
    with pytest.raises(ParamsError, match="it is not JSON"):
        find_models(tmp_path, load(root, mine))
    (folder / "config.json").unlink()
    with pytest.raises(ParamsError, match=r"which has no config\.json; correct the path"):
        find_models(tmp_path, load(root, mine))


def test_a_config_in_the_cache_of_the_hub_is_read(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "c" * 40
    snapshot = tmp_path / "models--some--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    (snapshot / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": 400, **text}))
    judge = {"models": {"judge": {"build": None, "hub": "some/model", "revision": "main"}}}
    assert find_models(root, load(root, judge))["judge"].shape.text.vocabulary == 400
    judge["models"]["judge"]["hub"] = "some/other"
    with pytest.raises(ParamsError, match=r"whose shape is not known here and whose config\.json is not in the hub's"):
        find_models(root, load(root, judge))


def test_constants_that_a_plan_has_of_its_own_are_those_of_the_stages() -> None:
    assert (ROWS_PER_TILE, COLUMNS_PER_TILE) == (head.ROWS_PER_TILE, head.COLUMNS_PER_TILE)
    assert count_exam() == len(list_exam_items())


def test_cards_have_the_memory_that_their_names_say() -> None:
    for name, card in CARDS.items():
        if name.isdigit():
            assert 0.9 * int(name) < card.memory / (1 << 30) < int(name)
