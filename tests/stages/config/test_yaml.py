"""Nested values by dotted keys, and what differs between two trees."""

from stages.config.yaml import compare_values, flatten

BEFORE = {"a": 1, "b": {"c": 2, "d": {"e": None}}, "f": {"g": 3}}
AFTER = {"a": 1, "b": {"c": 5, "d": {"e": None, "h": 6}}, "f": 7, "i": {"j": 8}}


def test_values_stand_under_dotted_keys() -> None:
    assert flatten(BEFORE) == {"a": 1, "b.c": 2, "b.d.e": None, "f.g": 3}
    assert flatten({"a": {}, "b": []}) == {"b": []}


def test_differences_are_as_deep_as_both_trees_go() -> None:
    assert list(compare_values(BEFORE, AFTER)) == [
        ("b.c", 2, 5),
        ("b.d.h", None, 6),
        ("f", {"g": 3}, 7),
        ("i", None, {"j": 8}),
    ]
    assert list(compare_values({"a": None}, {}, absent="(absent)")) == [("a", None, "(absent)")]
    assert list(compare_values({"a": None}, {})) == []
