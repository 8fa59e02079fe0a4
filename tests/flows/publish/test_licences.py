"""Licences: what cards of the hub say; what is not listed is unknown."""

import pytest

from flows.estimate.published import PUBLISHED
from flows.publish.licences import LICENCES, PUBLISHED_LICENCES, find_licence


@pytest.mark.parametrize(
    ("hub", "licence", "commercial"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen-research", "not allowed"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "apache-2.0", "allowed"),
        ("Qwen/Qwen2.5-VL-72B-Instruct", "qwen", "allowed below 100 million"),
        ("OpenGVLab/InternVL3-14B-hf", "qwen", "allowed below 100 million"),
        ("OpenGVLab/InternVL3-14B", "apache-2.0", "allowed"),
        ("Qwen/Qwen3-VL-4B-Instruct", "apache-2.0", "allowed"),
    ],
)
def test_known_checkpoints_have_the_licence_of_their_cards(hub: str, licence: str, commercial: str) -> None:
    found = find_licence(hub)
    assert found is not None
    assert found.id == licence
    assert found.commercial.startswith(commercial)


@pytest.mark.parametrize("hub", ["OpenGVLab/InternVL3-38B-hf", "somebody/Qwen2.5-VL-7B-Instruct", "qwen", ""])
def test_what_is_not_listed_is_unknown_and_not_inferred(hub: str) -> None:
    assert find_licence(hub) is None


def test_a_card_beside_the_weights_is_believed_first() -> None:
    stated = find_licence("Qwen/Qwen2.5-VL-7B-Instruct", "mit")
    assert stated is not None
    assert stated.id == "mit"
    own = find_licence("somebody/model", "openrail")
    assert own is not None
    assert (own.id, own.commercial) == ("openrail", "not known here: read its text")
    assert find_licence("Qwen/Qwen2.5-VL-3B-Instruct", "other") is LICENCES["qwen-research"]


def test_the_table_names_checkpoints_that_exist_and_licences_that_are_described() -> None:
    assert set(PUBLISHED_LICENCES.values()) <= LICENCES.keys()
    known = {name.lower() for name in PUBLISHED}
    unshaped = {name for name in PUBLISHED_LICENCES if name.lower() not in known}
    assert unshaped <= {"OpenGVLab/InternVL3-8B", "OpenGVLab/InternVL3-14B"}  # the originals, which need -hf here
