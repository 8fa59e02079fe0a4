"""The key of an answer: a hash of everything that determines the model's output, and of nothing else.

Excluded are ids and positions of questions, the experiment's seed, batch sizes, the number of GPUs, and the engine with
its version (stored with the answer). Therefore a question that occurs in two data sets is generated once, and a
corrected question with an old id is generated again.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.config.image_limits import NO_LIMITS, ImageLimits
from stages.config.sampling import Sampling
from stages.job.bounded import UnusableFile, parse_json, show_value
from stages.job.hashes import hash_json

_SHA256 = re.compile("[0-9a-f]{64}")
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
    limits: ImageLimits = NO_LIMITS  # on images, where they are not those of the model's own files

    def hash(self) -> str:
        """Returns the sha256 of all fields, as hex."""
        return self._hash

    @functools.cached_property
    def _hash(self) -> str:
        values = {name: getattr(self, name) for name in SPEC_FIELDS}
        plain = {"sampling": self.sampling.model_dump(mode="json"), "limits": self.limits.list_set()}
        return hash_spec({**values, **plain, "banned": list(self.banned)})

    @property
    def slug(self) -> str:
        """Folder name of these answers: a readable part and a unique hash; contains no user-defined name."""
        return f"{self.family}-{self.model_slug}-{self.hash()[:16]}"

    @property
    def model_slug(self) -> str:
        """A short prefix for the model, so that the folders of one model sort together."""
        return hash_model_name(self.model)

    def request_key(self, messages: Sequence[Mapping[str, str]], image_sha256: Sequence[str]) -> str:
        """Returns the sha256 of model, settings and request content; equal for all samples."""
        return hash_json({"asked": self.hash(), **make_request_content(messages, image_sha256)})


SPEC_FIELDS = tuple(field.name for field in dataclasses.fields(GenerationSpec) if field.name != "limits")


def hash_spec(values: Mapping[str, Any]) -> str:
    """Returns the sha256 of the fields of a GenerationSpec as JSON values; a setting that is None does not count.

    So a new setting that is not set leaves keys unchanged; the same holds for `limits` if there are none.
    """
    sampling = {name: value for name, value in values["sampling"].items() if value is not None}
    limits = {"limits": values["limits"]} if values.get("limits") else {}
    fields = {name: values[name] for name in SPEC_FIELDS}
    return hash_json({**fields, **limits, "version": VERSION, "sampling": sampling})


def hash_model_name(model: str) -> str:
    """Returns the part of a set's name that is of its model: eight hex digits."""
    return hashlib.sha256(model.encode()).hexdigest()[:8]


def make_request_content(messages: Sequence[Mapping[str, str]], image_sha256: Sequence[str]) -> dict[str, Any]:
    """Returns the request content for the key: roles and texts in order, and the hashes of the images' bytes."""
    return {"messages": [[message["role"], message["content"]] for message in messages], "images": list(image_sha256)}


def parse_request(text: str) -> dict[str, Any]:
    """Returns the content of a stored request, in the form of `make_request_content`. Raises UnusableFile."""
    value = parse_json(text)
    if not isinstance(value, dict) or value.keys() != {"messages", "images"}:
        raise UnusableFile(f"a request is an object with messages and images, not {show_value(text)}")
    messages, images = value["messages"], value["images"]
    pairs = isinstance(messages, list) and all(
        isinstance(one, list) and len(one) == 2 and all(isinstance(part, str) for part in one) for one in messages
    )
    if not pairs or not isinstance(images, list) or not all(isinstance(one, str) for one in images):
        raise UnusableFile(f"messages are pairs of role and text, images are hashes, not {show_value(text)}")
    return value


def is_sha256(text: str) -> bool:
    """Returns whether `text` is a sha256 as this module writes it."""
    return _SHA256.fullmatch(text) is not None


def derive_answer_key(request_key: str, sample: int) -> str:
    """Returns the key of one answer: sha256 of the request's key and the sample's number, as hex."""
    return hashlib.sha256(f"{request_key}:{sample}".encode()).hexdigest()


def derive_request_seed(request_key: str) -> int:
    """Returns the seed of sample 0 of a request, in [0, 2**62); sample i uses this plus i, in any batch."""
    return int(request_key[:16], 16) >> 2
