"""Ids that a model has: those of its embeddings, whatever its tokenizer knows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.vlm.chat import Chat
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_network, load_reader
from stages.vlm.trial import try_reading
from stages.vlm.vocabulary import count_embeddings


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
