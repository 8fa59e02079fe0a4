"""What a family of models must bring, checked where the families are listed."""

from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, get_args

import pytest

from stages.config.model import FamilyName as FamilyName
from stages.vlm import internvl3, qwen2_5
from stages.vlm.family import Family, index_families
from stages.vlm.reader import FAMILIES

FUNCTIONS = [
    name for name, value in vars(Family).items() if isinstance(value, FunctionType) and not name.startswith("_")
]


@pytest.fixture
def incomplete() -> Callable[..., Any]:
    """`incomplete("load_model", x=1)` is InternVL3 without `load_model` and with `x`."""

    def make(*without: str, **changed: Any) -> Any:
        module = ModuleType("stages.vlm.incomplete")
        kept = {name: value for name, value in vars(internvl3).items() if name not in without}
        vars(module).update({**kept, "__name__": "stages.vlm.incomplete", **changed})
        return module

    return make


def test_params_yaml_knows_the_families_that_there_are() -> None:
    assert {*FAMILIES, "remote"} == set(get_args(FamilyName))


def test_a_whole_family_is_taken(incomplete: Callable[..., Any]) -> None:
    module = incomplete()
    assert index_families(module) == {"internvl3": module}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_family_without_a_function_fails_at_import(incomplete: Callable[..., Any], name: str) -> None:
    assert len(FUNCTIONS) >= 11
    with pytest.raises(TypeError, match=f"^stages.vlm.incomplete is not a model family: no function {name}$"):
        index_families(qwen2_5, incomplete(name))


def other_parameter(processor: Any, pictures: list[bytes]) -> Any:
    """As `make_pixels`, with another parameter name and type."""


def test_attributes_and_signatures_are_checked(incomplete: Callable[..., Any]) -> None:
    for changed, fault in (
        ({"vision_tokens": "<img>"}, "vision_tokens is not a tuple of str"),
        ({"vision_tokens": (1,)}, "vision_tokens is not a tuple of str"),
        ({"attention": "sliding"}, "attention is none of packs, any"),
        ({"model_types": "internvl"}, "model_types is not a tuple of str"),
        ({"text_types": None}, "text_types is not a tuple of str"),
        ({"name": None}, "name is not a str"),
        ({"make_pixels": other_parameter}, "make_pixels has the signature"),
        ({"encode_images": internvl3.get_projection}, "encode_images has the signature"),
    ):
        with pytest.raises(TypeError, match=fault):
            index_families(incomplete(**changed))


def test_a_text_model_sees_no_image() -> None:
    for call in (qwen2_5.make_pixels, qwen2_5.count_image_tokens):
        with pytest.raises(ValueError, match="a prompt for a text model has 2 images"):
            call(None, [b"", b""])  # type: ignore[arg-type]
