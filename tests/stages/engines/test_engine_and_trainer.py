"""What vLLM samples with, and what the trainer computes for it: the same prompts, pixels and log probabilities."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stages.config.build import Build
from stages.config.engines import Vllm
from stages.config.image_limits import ImageLimits
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.corpora.markers import IMAGE_MARKER
from stages.engines.engine import Request
from stages.engines.vllm import VllmEngine
from stages.groups.log_probs import predicting_states, response_log_probs
from stages.groups.pack import Group, Pack, make_packs
from stages.tiny.builds.shapes import build_tiny
from stages.vlm.checkpoint import open_checkpoint, write_card
from stages.vlm.reader import Network, Reader, load_network, load_reader
from tests.conftest import SEEING
from tests.stages.conftest import TEXTS

ALLOWED = 1e-4  # nats, in fp32
SAMPLING = Sampling(temperature=1.0, max_tokens=12)
# (width, height) of the images of each prompt; larger and smaller ones than the limits below.
KINDS: dict[str, list[tuple[int, int]]] = {
    "square": [(84, 84)],
    "photo": [(1200, 900)],
    "12 megapixels": [(4000, 3000)],
    "tall": [(120, 700)],
    "wide": [(700, 120)],
    "tiny": [(10, 10)],
    "thin": [(20, 300)],
    "two": [(84, 112), (300, 200)],
    "three": [(56, 56), (200, 90), (10, 30)],
    "none": [],
}
LIMITS = {
    "qwen2_5_vl": ImageLimits(max_pixels=784 * 30, min_pixels=784 * 4),
    "qwen3_vl": ImageLimits(max_pixels=1024 * 30, min_pixels=1024 * 4),
    "internvl3": ImageLimits(min_tiles=1, max_tiles=4),
}


def draw(size: tuple[int, int], seed: int) -> bytes:
    """A gradient with coarse noise: no pixel is like its neighbours, and resizing matters."""
    noise = np.random.default_rng(seed).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    slope = Image.linear_gradient("L").resize(size).convert("RGB")
    buffer = io.BytesIO()
    Image.blend(slope, Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), 0.5).save(buffer, "PNG")
    return buffer.getvalue()


def make_request(kind: str) -> Request:
    """A question with the images of one kind at its begin and in the middle of its text."""
    images = [draw(size, seed) for seed, size in enumerate(KINDS[kind])]
    text = f"{IMAGE_MARKER * min(1, len(images))}What is the sum {IMAGE_MARKER * (len(images) - 1)}of the digits?"
    return Request(kind, [{"role": "user", "content": text}], images, SAMPLING, 3, seed=7, log_probs=True)


@pytest.fixture(scope="module", params=SEEING)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    """The engine of each family, with limits on images; towers have the three layers that Qwen3-VL takes levels of."""
    folder = tmp_path_factory.mktemp(request.param)
    shape = {"hidden_size": 64, "layers": 4, "heads": 2, "vision_hidden_size": 32, "vision_layers": 3}
    _, network = build_tiny(request.param, Build(steps=0, learning_rate=1e-3, **shape), TEXTS, 256, 1, folder)
    network.head.weight.data.mul_(20)  # so that it has opinions
    network.model.save_pretrained(folder)
    write_card(folder, request.param, "fp32", 256, limits=LIMITS[request.param])
    checkpoint = open_checkpoint(folder)
    started = VllmEngine(checkpoint, Runtime(), Vllm(kind="vllm", sequences=16), log_probs=True)
    yield started
    started.close()


def normalise(reader: Reader, seen: Tensor) -> Tensor:
    """What the vision tower is given of pixels that vLLM's processor hands on."""
    if seen.dtype != torch.uint8:
        return seen
    own = reader._processor.image_processor
    settings = (own.do_rescale, own.rescale_factor, own.do_normalize, own.image_mean, own.image_std)
    done: Tensor = own.rescale_and_normalize(seen.reshape(len(seen), 3, -1, 1), *settings)
    return done.reshape(seen.shape)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_reads_what_the_trainer_reads(engine: VllmEngine, kind: str) -> None:
    """Ids are equal, and pixels to the bit: before they are normalised, where vLLM leaves that to the vision tower."""
    request = make_request(kind)
    reader = load_reader(engine.checkpoint)
    ours = reader.make_prompt(request.messages, request.images)
    read, _ = engine._prepare(request)
    assert read["prompt_token_ids"] == ours.ids.tolist()
    seen = [item["pixel_values"].data for item in read["mm_kwargs"]["image"]] if request.images else []
    assert (ours.pixels is None) == (not seen)
    if ours.pixels is not None:
        assert torch.equal(normalise(reader, torch.cat(seen)), ours.pixels.values)


def find_banned_share(network: Network, pack: Pack, banned: Sequence[int]) -> Tensor:
    """What log p of each token gains since vision tokens are never sampled; a model of random weights wants them."""
    logits = network.head(predicting_states(network, pack))
    allowed = logits.clone()
    allowed[:, banned] = -torch.inf
    gained: Tensor = logits.logsumexp(1) - allowed.logsumexp(1)
    return gained


def measure_difference(engine: VllmEngine) -> tuple[list[float], int]:
    """Largest difference in log p of each kind, and the number of different answers.

    All kinds are asked in one call; the trainer packs the three answers to each under one prompt.
    """
    requests = [make_request(kind) for kind in KINDS]
    answers = dict(engine.generate(requests))
    reader = load_reader(engine.checkpoint)
    network = load_network(engine.checkpoint, reader)
    prompts = reader.make_prompts([(request.messages, request.images) for request in requests])
    groups = [Group(prompt, tuple(one.token_ids for one in answers[n])) for n, prompt in enumerate(prompts)]
    with torch.no_grad():
        packs = list(make_packs(groups, 512))
        banned = reader.chat.banned_token_ids
        trainer = torch.cat(
            [response_log_probs(network, pack) + find_banned_share(network, pack, banned) for pack in packs]
        )
    sampled = [torch.tensor([value for one in answers[n] for value in one.log_probs or ()]) for n in range(len(groups))]
    off = [
        float((ours - theirs).abs().max())
        for ours, theirs in zip(trainer.split([len(one) for one in sampled]), sampled, strict=True)
    ]
    return off, len({ids for group in groups for ids in group.responses})


@pytest.mark.slow
def test_log_probs_of_sampled_answers_are_the_trainers(engine: VllmEngine) -> None:
    off, different = measure_difference(engine)
    print(engine.checkpoint.family, {kind: f"{value:.1e}" for kind, value in zip(KINDS, off, strict=True)})
    assert max(off) <= ALLOWED
    assert different > 8, "answers depend on what is seen and drawn"
