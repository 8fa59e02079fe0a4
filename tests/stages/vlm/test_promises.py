"""A checkpoint whose files contradict each other or the parameters is refused before its weights are read."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.config.model import Model
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.contents import RefusedCheckpoint
from stages.vlm.promises import Facts, check_files_present, check_promises
from stages.vlm.stored_tensors import StoredTensor, read_stored_tensors
from stages.vlm.trial import try_reading

# What the files of the published InternVL3-2B-hf say, but for <video>.
FACTS = Facts(
    vocabulary=151674,
    positions=32768,
    quantization=None,
    image_token=151667,
    template=True,
    end="<|im_end|>",
    end_id=151645,
    plain=151643,
    known=151674,
    read_image_token=151667,
    used={"<|im_start|>": 151644, "<|im_end|>": 151645, "<IMG_CONTEXT>": 151667},
    banned={"<IMG_CONTEXT>": 151667, "<|video_pad|>": 151656},
    ends=[151645, 151643],
)
TENSORS = [
    StoredTensor("language_model.model.embed_tokens.weight", (151674, 8), "BF16", "a.safetensors"),
    StoredTensor("language_model.lm_head.weight", (151674, 8), "BF16", "b.safetensors"),
    StoredTensor("vision_tower.embeddings.weight", (9, 8), "BF16", "b.safetensors"),
]


def make_model(**given: Any) -> Model:
    return Model.model_validate({"family": "internvl3", "path": "ckpt", "context_tokens": 4096, **given})


def reshape(name: str, *shape: int) -> list[StoredTensor]:
    return [replace(one, shape=shape) if one.name.endswith(name) else one for one in TENSORS]


def test_a_checkpoint_that_keeps_its_promises_passes() -> None:
    assert check_promises(make_model(), "big", FACTS, TENSORS) == []
    assert check_promises(make_model(context_tokens=32768), "big", replace(FACTS, ends=[]), TENSORS) == []


FAULTS: dict[str, tuple[Any, Any, Any, tuple[str, ...]]] = {
    "template": ({}, {"template": False}, TENSORS, ("no chat template", "chat_template.jinja")),
    "end": ({}, {"end": None, "end_id": None}, TENSORS, ("no eos_token", "tokenizer_config.json")),
    "eos outside": (
        {},
        {"ends": [151645, 151674]},
        TENSORS,
        ("generation_config.json: eos_token_id 151674", "(ids 0 to 151673)"),
    ),
    "eos negative": ({}, {"ends": [151645, -1]}, TENSORS, ("eos_token_id -1 is no token",)),
    "eos text": ({}, {"ends": [151645, "<|im_end|>"]}, TENSORS, ("eos_token_id '<|im_end|>' is no token",)),
    "eos other": ({}, {"ends": [151643]}, TENSORS, ("eos_token is '<|im_end|>' (151645)", "eos_token_id [151643]")),
    "rows": ({}, {}, reshape("embed_tokens.weight", 151680, 8), ("151,680 rows", "vocab_size", "151,674")),
    "head": ({}, {}, reshape("lm_head.weight", 151655, 8), ("lm_head.weight has 151,655 rows",)),
    "plain": ({}, {"plain": 151700}, TENSORS, ("ids up to 151,699", "151,674 rows")),
    "used": ({}, {"used": {"<img>": 151674}}, TENSORS, ("prompts hold '<img>' (151,674)",)),
    "banned": ({}, {"banned": {"<video>": 151674}}, TENSORS, ("'<video>' (151,674) is never to be sampled",)),
    "image token": ({}, {"image_token": 5}, TENSORS, ("image_token_id is 5", "151,667")),
    "context": ({"context_tokens": 32769}, {}, TENSORS, ("context_tokens is 32,769", "reach 32,768", "lower")),
    "quantized": ({}, {"quantization": "awq"}, TENSORS, ("quantization_config is 'awq'", "family: remote")),
    "format": (
        {},
        {},
        [*TENSORS, StoredTensor("x.weight", (8, 8), "F8_E4M3", "c.safetensors")],
        ("c.safetensors: x.weight is stored as F8_E4M3", "family: remote"),
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_each_broken_promise_is_one_line_with_its_key_value_and_remedy(case: str) -> None:
    given, facts, tensors, said = FAULTS[case]
    with pytest.raises(RefusedCheckpoint) as caught:
        check_promises(make_model(**given), "big", replace(FACTS, **facts), tensors)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("models.big: ")
    assert all(part in line for part in said), line


def test_all_faults_are_told_at_once() -> None:
    facts = replace(FACTS, template=False, ends=[7, 151680, 151645], image_token=1)
    with pytest.raises(RefusedCheckpoint) as caught:
        check_promises(make_model(context_tokens=40000), "big", facts, TENSORS)
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("stored", "precision", "remarks"),
    [("F32", "bf16", 1), ("F16", "bf16", 1), ("BF16", "bf16", 0), ("BF16", "fp32", 0), ("F64", "fp32", 1)],
)
def test_rounded_weights_are_a_remark(stored: str, precision: str, remarks: int) -> None:
    tensors = [replace(one, format=stored) for one in TENSORS]
    found = check_promises(make_model(precision=precision), "big", FACTS, tensors)
    assert len(found) == remarks
    assert all(f"stored as {stored} are rounded to precision {precision}" in one for one in found)


def test_missing_files_are_named_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RefusedCheckpoint) as caught:
        check_files_present(tmp_path, make_model(), "big")
    first, second = str(caught.value).splitlines()
    assert "has no tokenizer.json" in first
    assert "family internvl3 reads images" in second
    assert "has no processor_config.json and no preprocessor_config.json" in second
    (tmp_path / "tokenizer.json").write_text("{}")
    check_files_present(tmp_path, make_model(family="qwen2_5"), "judge")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    check_files_present(tmp_path, make_model(), "big")


def test_headers_of_weights_are_read_without_values(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "one.safetensors")
    save_file({"c": torch.zeros((), dtype=torch.int8)}, tmp_path / "two.safetensors", metadata={"format": "pt"})
    found = sorted(read_stored_tensors(tmp_path), key=lambda one: one.name)
    assert found == [
        StoredTensor("a", (3, 4), "F32", "one.safetensors"),
        StoredTensor("b", (2,), "BF16", "one.safetensors"),
        StoredTensor("c", (), "I8", "two.safetensors"),
    ]
    assert [one.values for one in found] == [12, 2, 1]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda whole: whole[:-1], "is cut off"),
        (lambda whole: whole[:20], "no whole header"),
        (lambda whole: b"", "0 bytes and no whole header"),
        (lambda whole: POINTER, "pointer of Git LFS.*git lfs pull"),
        (lambda whole: whole.replace(b'"F32"', b"[1,2]"), "cut off|no readable header|stored as"),
        (lambda whole: whole[:8] + b"[" + whole[9:], "no readable header"),
        (lambda whole: b"\xff" * len(whole), "no whole header"),
    ],
)
def test_weights_that_are_not_whole_are_one_line(tmp_path: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3, 4)}, file)
    read_stored_tensors(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RefusedCheckpoint, match=reason) as caught:
        check_promises(make_model(), "big", FACTS, read_stored_tensors(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.is_file() else {}), **values}))


@pytest.mark.slow
def test_real_files_keep_and_break_their_promises(
    tiny: Callable[[str], Checkpoint], tmp_path: Path, family: str
) -> None:
    folder = Path(shutil.copytree(tiny(family).weights, tmp_path / "model"))
    model = Model.model_validate(
        {"family": family, "path": "x", "precision": "fp32", "context_tokens": tiny(family).context_tokens}
    )
    facts = try_reading(folder, family, 64).facts
    assert check_promises(model, "big", facts, read_stored_tensors(folder)) == []
    assert facts.positions is not None
    assert set(facts.banned) >= {"<|image_pad|>"}
    assert facts.read_image_token in facts.used.values()
    change_json(folder / "generation_config.json", eos_token_id=[facts.end_id, facts.known])
    stored = load_file(folder / "model.safetensors")
    (embedding,) = (name for name in stored if name.endswith("embed_tokens.weight"))
    save_file({**stored, embedding: stored[embedding][:-1].clone()}, folder / "model.safetensors", {"format": "pt"})
    shorter = model.model_copy(update={"context_tokens": facts.positions + 1})
    with pytest.raises(RefusedCheckpoint) as caught:
        check_promises(shorter, "big", try_reading(folder, family, 64).facts, read_stored_tensors(folder))
    said = str(caught.value)
    assert f"eos_token_id {facts.known} is no token" in said
    assert f"{embedding} has {len(stored[embedding]) - 1:,} rows" in said
    assert "context_tokens is" in said
    for file in ("chat_template.jinja", "chat_template.json"):
        (folder / file).unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(RefusedCheckpoint, match="the tokenizer has no chat template"):
        check_promises(model, "big", try_reading(folder, family, 64).facts, read_stored_tensors(folder))
