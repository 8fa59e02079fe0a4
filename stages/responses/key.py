"""The key of an answer: a hash of all that changes what a model would write, and of nothing else.

Not in it: ids and places of questions, the experiment's seed, batch sizes, number of GPUs, engine and its version (kept
beside the answer). So the same question reached through two data sets is asked once, and a corrected one under an old
id is asked anew.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.config.sampling import Sampling
from stages.job.hashes import hash_json

VERSION = 1  # of the way a key is computed; another number makes all stored answers unfindable


@dataclass(frozen=True)
class GenerationSpec:
    """Who is asked and how: what the requests of one run have in common."""

    model: str  # identity of weights, tokenizer and configuration (image sizes are in there)
    family: str
    precision: str
    context_tokens: int  # an answer that would be longer is cut
    template: str  # hash of the chat template
    banned: tuple[int, ...]  # tokens that are never sampled
    sampling: Sampling
    draw: int  # another number asks for fresh answers

    def hash(self) -> str:
        """sha256 of everything here, as hex."""
        return self._hash

    @functools.cached_property
    def _hash(self) -> str:
        values = {
            "version": VERSION,
            "model": self.model,
            "family": self.family,
            "precision": self.precision,
            "context_tokens": self.context_tokens,
            "template": self.template,
            "banned": list(self.banned),
            "sampling": self.sampling.model_dump(
                mode="json", exclude_none=True
            ),  # a new setting, unset, changes no key
            "draw": self.draw,
        }
        return hash_json(values)

    @property
    def slug(self) -> str:
        """Name of the folder with these answers: a word for people, a hash for uniqueness; no name that users give."""
        return f"{self.family}-{self.model_slug}-{self.hash()[:16]}"

    @property
    def model_slug(self) -> str:
        """A short mark of the model, so that folders of one model lie side by side."""
        return hashlib.sha256(self.model.encode()).hexdigest()[:8]

    def request_key(self, messages: Sequence[Mapping[str, str]], image_sha256: Sequence[str]) -> str:
        """sha256 of who is asked, how, and what; the same for all samples."""
        return hash_json({"asked": self.hash(), **make_request_content(messages, image_sha256)})


def make_request_content(messages: Sequence[Mapping[str, str]], image_sha256: Sequence[str]) -> dict[str, Any]:
    """What is asked, as it goes into the key: roles and texts in order, hashes of the images' bytes."""
    return {"messages": [[message["role"], message["content"]] for message in messages], "images": list(image_sha256)}


def derive_answer_key(request_key: str, sample: int) -> str:
    """Key of one answer: sha256 of the request's key and the sample's number, as hex."""
    return hashlib.sha256(f"{request_key}:{sample}".encode()).hexdigest()


def derive_request_seed(request_key: str) -> int:
    """Seed of sample 0 of a request, in [0, 2**62); sample i is drawn with this plus i, in whichever batch it is."""
    return int(request_key[:16], 16) >> 2
