"""Which tokenizers agree, what is said of those that do not, and how a teacher reads the student's ids."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from stages.job.failure import Failure
from stages.vlm.chat import Chat
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_reader
from stages.vlm.shared_ids import PROBES, explain_difference, match_ids

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def chat(tiny: Callable[[str], Checkpoint]) -> Chat:
    return load_reader(tiny("qwen2_5_vl")).chat


def changed(chat: Chat, change: Change) -> Tokenizer:
    """The tokenizer with another description."""
    values = json.loads(chat.tokenizer._tokenizer.to_str())
    change(values)
    return Tokenizer.from_str(json.dumps(values))


def with_tokens(chat: Chat, end: str, *added: str) -> Chat:
    """A chat with the same ordinary tokens, these added ones and that end of a turn."""

    def change(values: dict[str, Any]) -> None:
        first = len(values["model"]["vocab"])
        values["added_tokens"] = [
            {**values["added_tokens"][0], "id": first + number, "content": content}
            for number, content in enumerate(added)
        ]

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=changed(chat, change), eos_token=end)
    return Chat(tokenizer, ())


def test_a_model_of_the_same_tokenizer_reads_every_token(chat: Chat) -> None:
    found = match_ids(("student", chat), ("teacher", chat))
    assert found.shared == frozenset(chat.tokenizer.get_vocab().values())
    ids = chat.encode_response("so it is 16")
    assert found.translate(ids) == tuple(ids)
    assert found.translate([*ids, len(chat.tokenizer) + 5]) == (), "a row of the embeddings that is no token"


def test_ends_of_a_turn_stand_for_each_other_and_other_added_tokens_must_be_equal(chat: Chat) -> None:
    one = with_tokens(chat, "<end>", "<end>", "<box>", "<ref>")
    two = with_tokens(chat, "</s>", "<pad>", "<box>", "</s>", "<ref>")
    found = match_ids(("student", one), ("teacher", two))
    first = len(chat.tokenizer._tokenizer.get_vocab(with_added_tokens=False))
    text = chat.encode_text("16")
    assert found.translate([*text, first]) == (*text, first + 2), "its own end"
    assert found.translate([*text, first + 1, first]) == (*text, first + 1, first + 2), "<box> is the same token"
    assert found.translate([*text, first + 2, first]) == (), "<ref> has another id"


def swap(values: dict[str, Any]) -> None:
    """Two tokens change places."""
    vocab = values["model"]["vocab"]
    names = sorted(vocab, key=vocab.__getitem__)[-2:]
    vocab[names[0]], vocab[names[1]] = vocab[names[1]], vocab[names[0]]


def join_otherwise(values: dict[str, Any]) -> None:
    """The merges are tried in another order."""
    values["model"]["merges"].reverse()


def split_otherwise(values: dict[str, Any]) -> None:
    """Every sign is alone."""
    signs = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [signs, values["pre_tokenizer"]]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap, "tokens, and "),
        (join_otherwise, "they join other pairs to them (merges)"),
        (split_otherwise, "they split texts differently"),
    ],
)
def test_what_differs_is_said_with_both_names_and_the_remedy(chat: Chat, change: Change, said: str) -> None:
    ours, theirs = chat.tokenizer._tokenizer, changed(chat, change)
    line = explain_difference(("our_model", ours), ("their_model", theirs))
    assert line.startswith("ril.distillation: their_model does not have the tokenizer of the student (our_model): ")
    assert said in line
    assert line.count("their_model") >= 1
    assert "; distil from models with the student's tokenizer only (ril.distillation), or take another" in line
    assert len(line.splitlines()) == 1


def test_a_larger_vocabulary_is_another_tokenizer(chat: Chat) -> None:
    """Texts that the student writes in two tokens would be one of the teacher's."""
    count = len(chat.tokenizer._tokenizer.get_vocab(with_added_tokens=False))
    larger = changed(chat, lambda values: values["model"]["vocab"].update({"!zz": count}))
    other = Chat(PreTrainedTokenizerFast(tokenizer_object=larger, eos_token="<|im_end|>"), ())
    said = f"{count:,} and {count + 1:,} tokens, and '!zz' is token none of student and {count} of teacher"
    with pytest.raises(Failure, match=re.escape(said)):
        match_ids(("student", chat), ("teacher", other))


def test_the_probes_have_digits_blanks_and_scripts() -> None:
    signs = {*"".join(PROBES)}
    assert {"2", " ", "\n", "\t", "\r", "é", "数", "🙂", "<"} <= signs
