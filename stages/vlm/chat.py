"""Conversion of messages to token ids and back, shared by training and all engines.

Text from users, teachers and students is encoded without special tokens, so that a literal `<|im_end|>` or `<image>`
remains text (trap T7). An image is one placeholder token; engines expand it (trap T5).
"""

import functools
import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.corpora.markers import IMAGE_MARKER
from stages.job.hashes import hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters; rejected in text, so that they only mark inserted pieces


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
        self, tokenizer: "PreTrainedTokenizerBase", vision_tokens: Sequence[str], embeddings: int | None = None
    ) -> None:
        """`embeddings` is the number of ids that the model has; the tokenizer's further ones cannot be sampled.

        None: the model has all ids of the tokenizer.
        """
        self.tokenizer = tokenizer
        known = tokenizer.get_vocab()
        banned = sorted(known[token] for token in vision_tokens if token in known)
        self.banned_token_ids = [token for token in banned if embeddings is None or token < embeddings]
        self.stop_token_ids: list[int] = [int(tokenizer.eos_token_id)]
        added = tokenizer.added_tokens_decoder.items()
        self._special_ids = {token.content: int(number) for number, token in added if token.special}
        longest = sorted(self._special_ids, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest)) or '(?!)'})")
        # A second thread encodes requests to a server and decodes its replies. One thread must not encode special
        # tokens while the other has them disabled, and the tokenizer cannot be reconfigured while it decodes.
        self._switch = threading.RLock()

    @functools.cached_property
    def template_hash(self) -> str:
        """Hash of chat template and vocabulary; together with the messages it determines the prompt ids."""
        return hash_json([self.tokenizer.chat_template, sorted(self.tokenizer.get_vocab().items())])

    def encode_text(self, text: str) -> list[int]:
        """Returns the ids of plain text, without special tokens."""
        backend = self.tokenizer._tokenizer
        with self._switch:
            backend.encode_special_tokens = True
            try:
                return list(backend.encode(text, add_special_tokens=False).ids)
            finally:
                backend.encode_special_tokens = False

    def encode_prompt(self, messages: Sequence[Mapping[str, str]], images: int) -> list[int]:
        """Returns the ids of the rendered conversation with the generation prompt.

        The first `images` occurrences of `<image>` in the contents become image placeholders; further ones remain text.
        Raises ValueError when there are fewer, or when a content contains a reserved private-use character.
        """
        pieces: list[str] = []
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
                parts += [{"type": "text", "text": f"{_OPEN}{len(pieces)}{_CLOSE}"}] if text else []
                pieces += [text] if text else []
            single = parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts
            rendered.append({"role": message["role"], "content": single if parts else ""})
        if left:
            raise ValueError(f"{images} images, but {images - left} {IMAGE_MARKER} markers in the messages")
        text = self.tokenizer.apply_chat_template(rendered, tokenize=False, add_generation_prompt=True)
        return self._assemble(str(text), pieces)

    def _assemble(self, text: str, pieces: Sequence[str]) -> list[int]:
        """Encodes the template's text with `pieces` in it; special tokens are those of the template only.

        All between two of them is encoded at once: a piece that begins with a newline after a newline of the template
        gives the token of two newlines, as in the processors of transformers.
        """
        ids: list[int] = []
        plain = ""
        for chunk in text.split(_OPEN):
            number, found, rest = chunk.partition(_CLOSE)
            plain += pieces[int(number)] if found else ""
            for part in self._special.split(rest if found else chunk):
                token = self._special_ids.get(part)
                if token is None:
                    plain += part
                    continue
                ids += [*self.encode_text(plain), token]
                plain = ""
        return ids + self.encode_text(plain)

    def encode_response(self, text: str) -> list[int]:
        """Returns the ids of a complete response with the end-of-turn token."""
        return [*self.encode_text(text), *self.stop_token_ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of a response without special tokens and without surrounding white space."""
        with self._switch:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
