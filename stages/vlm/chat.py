"""Conversion of messages to token ids and back, shared by training and all engines.

Text from users, teachers and students is encoded without any added token, special or not, so that a literal
`<|im_end|>`, `<tool_call>` or `<image>` remains text (trap T7). An image is one placeholder token; engines expand it
(trap T5).
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.corpora.markers import IMAGE_MARKER
from stages.job.hashes import hash_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

KEPT_PARTS = 128  # of rendered conversations, between two added tokens, whose ids are not computed anew
_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters; rejected in text, so that they only mark what is hidden


class RemoteChat:
    """Chat of a remote model: no tokenizer, no template, no banned tokens; messages are sent unchanged."""

    template_hash = ""
    banned_token_ids: tuple[int, ...] = ()

    def encode_prompt(self, messages: Sequence[Mapping[str, str]], images: int) -> list[int]:
        """Returns an empty list: the tokens are unknown, so no prompt counts as too long."""
        return []


class Chat:
    """Chat template and tokenizer of one checkpoint."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        vision_tokens: Sequence[str],
        embeddings: int | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        """`embeddings` is the number of ids that the model has; the tokenizer's further ones cannot be sampled.

        None: the model has all ids of the tokenizer. `ends` are ids that end an answer, beside the tokenizer's
        `eos_token`: models are trained to end a turn with that one, and may also have learned to end with another.
        """
        self.tokenizer = tokenizer
        known = tokenizer.get_vocab()
        banned = sorted(known[token] for token in vision_tokens if token in known)
        self.banned_token_ids = [token for token in banned if embeddings is None or token < embeddings]
        self.end_token_id = int(tokenizer.eos_token_id)  # that of training targets
        self.stop_token_ids = list(dict.fromkeys([self.end_token_id, *ends]))  # of engines: any of them ends an answer
        self._added = {token.content: (int(number), token) for number, token in tokenizer.added_tokens_decoder.items()}
        self._plain = make_plain_tokenizer(tokenizer._tokenizer)
        # System prompts and the words of a template are in all prompts.
        self._encode_part = functools.lru_cache(maxsize=KEPT_PARTS)(self.encode_text)
        # Tokens of white space alone mark nothing, and models know white space by them.
        self._blanks = _compile_any([content for content in self._added if content.isspace()])
        marking = [content for content in self._added if not content.isspace()]
        # No added token can arise in or around a text in which the first character of each is hidden.
        self._first = sorted({content[0] for content in marking})
        self._hidden = re.compile(f"[{re.escape(''.join(self._first))}]" if self._first else "(?!)")
        self._marks = re.compile(f"{_compile_any(marking).pattern}|{_OPEN}([0-9]+){_CLOSE}")
        around = (tokenizer.bos_token_id, tokenizer.pad_token_id)
        self._unsaid = {*self.stop_token_ids, *(number for number in around if number is not None)}

    @functools.cached_property
    def template_hash(self) -> str:
        """Hash of chat template and vocabulary; together with the messages it determines the prompt ids."""
        return hash_json([self.tokenizer.chat_template, sorted(self.tokenizer.get_vocab().items())])

    @functools.cached_property
    def token_texts(self) -> dict[int, str]:
        """The text of each token by itself, as `decode` returns it."""
        return {number: self.decode([number]) for number in self.tokenizer.get_vocab().values()}

    @functools.cached_property
    def _takes_strings(self) -> bool:
        """Whether the template shows a content that is a string; some read lists of parts only."""
        rendered = self.tokenizer.apply_chat_template([{"role": "user", "content": _OPEN}], tokenize=False)
        return _OPEN in str(rendered)

    def encode_text(self, text: str) -> list[int]:
        """Returns the ids of plain text, without added tokens."""
        ids: list[int] = []
        for place, part in enumerate(self._blanks.split(text)):
            ids += [self._added[part][0]] if place % 2 else self._plain.encode(part, add_special_tokens=False).ids
        return ids

    def encode_prompt(self, messages: Sequence[Mapping[str, str]], images: int) -> list[int]:
        """Returns the ids of the rendered conversation with the generation prompt.

        The first `images` occurrences of `<image>` in the contents become image placeholders; further ones remain text.
        The template sees the texts without the first characters of added tokens: it trims white space as for the
        processors of transformers, and obeys no tag in a text, not even `</think>`.

        Raises ValueError when there are fewer, or when a content contains a reserved private-use character.
        """
        left = images
        rendered: list[dict[str, Any]] = []
        for message in messages:
            if _OPEN in message["content"] or _CLOSE in message["content"]:
                raise ValueError("message content contains the private-use character U+E000 or U+E001; remove it")
            texts = message["content"].split(IMAGE_MARKER, left)
            left -= len(texts) - 1
            parts: list[dict[str, str]] = []
            for place, text in enumerate(texts):
                parts += [{"type": "image"}] if place else []
                parts += [{"type": "text", "text": self._hidden.sub(self._hide, text)}] if text else []
            plain = self._takes_strings and all("text" in part for part in parts)
            rendered.append({"role": message["role"], "content": "".join(p["text"] for p in parts) if plain else parts})
        if left:
            raise ValueError(f"{images} images, but {images - left} {IMAGE_MARKER} markers in the messages")
        text = self.tokenizer.apply_chat_template(rendered, tokenize=False, add_generation_prompt=True)
        return self._encode_rendered(str(text))

    def _hide(self, found: re.Match[str]) -> str:
        return f"{_OPEN}{self._first.index(found[0])}{_CLOSE}"

    def _encode_rendered(self, text: str) -> list[int]:
        """Encodes the template's text with messages in it; added tokens are those of the template only.

        All between two of them is encoded at once: a text that begins with a newline after a newline of the template
        gives the token of two newlines, as in the processors of transformers.
        """
        ids: list[int] = []
        plain, start, strips = "", 0, False
        for found in self._marks.finditer(text):
            plain += text[start : found.start()]
            start = found.end()
            if found[2] is not None:
                plain += self._first[int(found[2])]
                continue
            number, token = self._added[found[1]]
            plain = plain.lstrip() if strips else plain
            ids += [*self._encode_part(plain.rstrip() if token.lstrip else plain), number]
            plain, strips = "", token.rstrip
        plain += text[start:]
        return ids + self._encode_part(plain.lstrip() if strips else plain)

    def encode_response(self, text: str) -> list[int]:
        """Returns the ids of a complete response with the end-of-turn token."""
        return [*self.encode_text(text), self.end_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of a response without surrounding white space.

        Tokens that begin, end or pad are left out; others are content, special or not (`<ref>`, `<box>`).
        """
        said = [number for number in ids if number not in self._unsaid]
        return str(self.tokenizer.decode(said, skip_special_tokens=False)).strip()


def make_plain_tokenizer(backend: "Tokenizer") -> "Tokenizer":
    """Returns a tokenizer with the same model and steps, which it shares, and without added tokens."""
    from tokenizers import Tokenizer

    plain = Tokenizer(backend.model)
    for step in ("normalizer", "pre_tokenizer", "decoder"):
        if (own := getattr(backend, step)) is not None:
            setattr(plain, step, own)
    return plain


def _compile_any(contents: Sequence[str]) -> re.Pattern[str]:
    """Returns a pattern with one group for the longest of these contents."""
    longest = sorted(contents, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest)) or '(?!)'})")
