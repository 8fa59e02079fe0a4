"""Licences of published checkpoints, and what they allow.

A checkpoint that is not listed here has an unknown licence, unless its own card names one: nothing is inferred from its
name, its size or its family.
"""

from collections.abc import Mapping
from dataclasses import dataclass

OWN = "apache-2.0"  # of this project (LICENSE), and so of what it trains from random weights
_PAGE = "https://huggingface.co"
_QWEN_NOTICE = (
    "a model that is distributed and was made or improved with these weights or with their answers says "
    '"Built with Qwen" or "Improved using Qwen" in its documentation'
)


@dataclass(frozen=True)
class Licence:
    """One licence, by the name that the hub's cards use."""

    id: str
    title: str
    link: str  # its text
    commercial: str  # whether commercial use is allowed, in words
    notice: str = ""  # what a model shows that was made from the weights or from their answers; "" for nothing more

    @property
    def known_to_hub(self) -> bool:
        """Whether the hub has a name for it; others are `other` with name and link."""
        return self.id in ("apache-2.0", "mit")


LICENCES: Mapping[str, Licence] = {
    one.id: one
    for one in (
        Licence("apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0", "allowed"),
        Licence("mit", "MIT License", "https://opensource.org/license/mit", "allowed"),
        Licence(
            "qwen",
            "Qwen License Agreement",
            f"{_PAGE}/Qwen/Qwen2.5-VL-72B-Instruct/blob/main/LICENSE",
            "allowed below 100 million users a month, above it on request",
            _QWEN_NOTICE,
        ),
        Licence(
            "qwen-research",
            "Qwen Research License Agreement",
            f"{_PAGE}/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/LICENSE",
            "not allowed: research and evaluation only",
            _QWEN_NOTICE,
        ),
    )
}

# What the `license` of each card on the hub says.
_APACHE = (
    *(f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("7B", "32B")),
    *(f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B", "32B")),
    *(f"Qwen/Qwen2.5-{size}-Instruct" for size in ("0.5B", "1.5B", "7B", "14B", "32B")),
    *(f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B")),
    *(f"OpenGVLab/InternVL3-{size}" for size in ("8B", "14B")),  # not those of the same name with -hf
    *(f"HuggingFaceTB/SmolLM2-{size}-Instruct" for size in ("135M", "360M", "1.7B")),
)
_QWEN = (
    "Qwen/Qwen2.5-VL-72B-Instruct",
    "Qwen/Qwen2.5-72B-Instruct",
    *(f"OpenGVLab/InternVL3-{size}-hf" for size in ("8B", "14B", "78B")),
)
_RESEARCH = ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct")
PUBLISHED_LICENCES: Mapping[str, str] = {
    **dict.fromkeys(_APACHE, "apache-2.0"),
    **dict.fromkeys(_QWEN, "qwen"),
    **dict.fromkeys(_RESEARCH, "qwen-research"),
}


def find_licence(hub: str, stated: str | None = None) -> Licence | None:
    """Returns the licence of a hub model; `stated` is what the card beside its weights says. None: unknown.

    A licence that is stated and not listed here comes back with its name alone: what it allows is not known.
    """
    name = stated if stated and stated != "other" else PUBLISHED_LICENCES.get(hub)
    if name is None:
        return None
    return LICENCES.get(name) or Licence(name, name, "", "not known here: read its text")
