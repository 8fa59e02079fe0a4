"""The key of an answer: a hash of everything that determines the model's output, and of nothing else.

Excluded are ids and positions of questions, the experiment's seed, batch sizes, the number of GPUs, and the engine with
its version (stored with the answer). Therefore a question that occurs in two data sets is generated once, and a
corrected question with an old id is generated again.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.config.sampling import Sampling
from stages.job.hashes import hash_json

VERSION = 1  # version of the key format; changing it makes all stored answers unreachable


@dataclass(frozen=True)
class GenerationSpec:
    """The model and its settings: what the requests of one run have in common."""

    model: str  # identity of weights, tokenizer and configuration (includes image sizes)
    family: str
    precision: str
    context_tokens: int  # longer answers are truncated
    template: str  # hash of the chat template
    banned: tuple[int, ...]  # tokens that are never sampled
    sampling: Sampling
    draw: int  # another number requests fresh answers

    def hash(self) -> str:
        """Returns the sha256 of all fields, as hex."""
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
            ),  # a new setting that is not set leaves keys unchanged
            "draw": self.draw,
        }
        return hash_json(values)

    @property
    def slug(self) -> str:
        """Folder name of these answers: a readable part and a unique hash; contains no user-defined name."""
        return f"{self.family}-{self.model_slug}-{self.hash()[:16]}"

    @property
    def model_slug(self) -> str:
        """A short prefix for the model, so that the folders of one model sort together."""
        return hashlib.sha256(self.model.encode()).hexdigest()[:8]

    def request_key(self, messages: Sequence[Mapping[str, str]], image_sha256: Sequence[str]) -> str:
        """Returns the sha256 of model, settings and request content; equal for all samples."""
        return hash_json({"asked": self.hash(), **make_request_content(messages, image_sha256)})


def make_request_content(messages: Sequence[Mapping[str, str]], image_sha256: Sequence[str]) -> dict[str, Any]:
    """Returns the request content for the key: roles and texts in order, and the hashes of the images' bytes."""
    return {"messages": [[message["role"], message["content"]] for message in messages], "images": list(image_sha256)}


def derive_answer_key(request_key: str, sample: int) -> str:
    """Returns the key of one answer: sha256 of the request's key and the sample's number, as hex."""
    return hashlib.sha256(f"{request_key}:{sample}".encode()).hexdigest()


def derive_request_seed(request_key: str) -> int:
    """Returns the seed of sample 0 of a request, in [0, 2**62); sample i uses this plus i, in any batch."""
    return int(request_key[:16], 16) >> 2
