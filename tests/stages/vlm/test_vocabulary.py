"""Ids that a model has, whatever its tokenizer knows: those of its embeddings, and those that end its answers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stages.config.sampling import Sampling
from stages.engines.arguments import make_sampling_arguments
from stages.engines.engine import Request
from stages.vlm.chat import Chat
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_network, load_reader
from stages.vlm.trial import try_reading
from stages.vlm.vocabulary import count_embeddings, read_ends


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl3", "qwen2_5"])
def test_the_count_is_that_of_the_loaded_embeddings(family: str, tiny: Callable[[str], Checkpoint]) -> None:
    made = tiny(family)
    assert count_embeddings(made.weights) == len(load_network(made, load_reader(made)).text.embed_tokens.weight)


def test_a_token_without_embedding_is_not_banned(tiny: Callable[[str], Checkpoint]) -> None:
    """As `<video>` of the published InternVL3-hf, which no engine takes as an id of a ban."""
    tokenizer = load_reader(tiny("internvl3")).chat.tokenizer
    known = tokenizer.convert_tokens_to_ids(["<IMG_CONTEXT>", "<video>"])
    assert Chat(tokenizer, ("<IMG_CONTEXT>", "<video>")).banned_token_ids == sorted(known)
    assert Chat(tokenizer, ("<IMG_CONTEXT>", "<video>"), max(known)).banned_token_ids == [min(known)]


def test_the_trial_of_a_checkpoint_bans_ids_that_it_has(tiny: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    """The published InternVL3-hf would else be refused at stage `model`, for the ban of its `<video>`."""
    folder = Path(shutil.copytree(tiny("internvl3").weights, tmp_path / "short"))
    video = load_reader(tiny("internvl3")).chat.tokenizer.convert_tokens_to_ids("<video>")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = video
    (folder / "config.json").write_text(json.dumps(config))
    facts = try_reading(folder, "internvl3", 100).facts
    assert facts.known > facts.vocabulary == video
    assert facts.banned
    assert max(facts.banned.values()) < video


@pytest.mark.parametrize(
    ("generation", "ends"),
    [({"eos_token_id": [5, 3]}, [5, 3]), ({"eos_token_id": 5}, [5]), ({"eos_token_id": None}, []), ({}, [])],
)
def test_ends_of_generation_config(generation: dict[str, object], ends: list[int], tmp_path: Path) -> None:
    assert read_ends(tmp_path) == []
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_ends(tmp_path) == ends


def test_every_end_of_an_answer_stops_an_engine_and_the_tokenizers_own_ends_a_target(
    tiny: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    made = tiny("qwen2_5_vl")
    folder = Path(shutil.copytree(made.weights, tmp_path / "ends"))
    chat = load_reader(made).chat
    other = chat.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert "<|im_start|>" in chat.decode([other, *chat.encode_text("28")])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [other, chat.end_token_id]}))
    chat = load_reader(replace(made, weights=folder)).chat
    assert chat.stop_token_ids == [chat.end_token_id, other]
    request = Request("q", [{"role": "user", "content": "1 + 1?"}], [], Sampling())
    assert make_sampling_arguments(request, chat, -1.0)["stop_token_ids"] == [chat.end_token_id, other]
    assert chat.encode_response("28") == [*chat.encode_text("28"), chat.end_token_id]
    assert chat.decode([*chat.encode_text("28"), other]) == "28"
