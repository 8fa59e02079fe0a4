"""What both sides of the comparison with TRL train on, as files: a tiny Qwen2.5-VL, questions, answers and their
rewards.
"""

import io
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FAMILY = "qwen2_5_vl"
SIDE_OF_TOKEN = 28  # pixels of an image token's side
WORDS = "What is the running total of all the bars that are taller than those on their left in the image shown here"


@dataclass(frozen=True)
class Shape:
    """One setting of the comparison (peers' protocol: hidden 256, 4 layers, vocabulary 8k, R = 32, 8 rows a
    question).
    """

    image_tokens: int = 64  # a square number
    rows: int = 8  # 2G
    length: int = 32  # R; with `ragged` the longest
    questions: int = 4  # of one optimizer step
    ragged: bool = False  # answers of every length up to R
    kl_weight: float = 0.01
    learning_rate: float = 1e-4
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    vision_hidden_size: int = 64
    vision_layers: int = 2
    vocabulary: int = 8192
    tokens_per_pack: int = 8192  # the default of params.yaml
    seed: int = 0

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.image_tokens} image tokens, {self.rows} rows of {self.length}"


def write_fixture(folder: Path, shape: Shape) -> None:
    """Writes `folder`: checkpoint/, images, fixture.json with shape, questions, answers and rewards."""
    folder.mkdir(parents=True)
    (folder / "shape.json").write_text(json.dumps(asdict(shape), indent=1))
    write_checkpoint(folder / "checkpoint", shape)
    choose = random.Random(shape.seed)
    questions = [_question(folder, shape, number, choose) for number in range(shape.questions)]
    (folder / "questions.json").write_text(json.dumps(questions, indent=1))


def read_shape(folder: Path) -> Shape:
    """The shape of a written fixture."""
    return Shape(**json.loads((folder / "shape.json").read_text()))


def _question(folder: Path, shape: Shape, number: int, choose: random.Random) -> dict[str, Any]:
    """One question with an image, 2G answers as token ids and a reward in {0, 1, 2} for each, not all the same."""
    from PIL import Image

    side = round(shape.image_tokens**0.5) * SIDE_OF_TOKEN
    pixels = bytes(choose.randrange(256) for _ in range(8 * 8 * 3))
    buffer = io.BytesIO()
    Image.frombytes("RGB", (8, 8), pixels).resize((side, side)).save(buffer, "PNG")
    (folder / f"{number}.png").write_bytes(buffer.getvalue())
    last = max(1, shape.rows - 1)
    lengths = [1 + row * (shape.length - 1) // last if shape.ragged else shape.length for row in range(shape.rows)]
    ordinary = range(256)  # bytes; no special token among them
    return {
        "text": f"{WORDS}, question {number}?",
        "image": f"{number}.png",
        "completions": [[choose.choice(ordinary) for _ in range(length)] for length in lengths],
        "rewards": [row % 3 for row in range(shape.rows)],
    }


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """A model with weights that are a function of the seed alone, its tokenizer made from the questions' words."""
    import numpy
    import torch

    from stages.config.build import Build
    from stages.tiny.builds.shapes import build_tiny
    from stages.vlm.checkpoint import write_card

    folder.mkdir()
    build = Build(
        steps=0,
        learning_rate=1e-3,
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        heads=shape.heads,
        vision_hidden_size=shape.vision_hidden_size,
        vision_layers=shape.vision_layers,
    )
    context = 4096
    _, network = build_tiny(FAMILY, build, [WORDS], context, 1, folder)
    config: Any = network.model.config
    config.text_config.vocab_size = max(shape.vocabulary, config.text_config.vocab_size)
    config.vision_config.fullatt_block_indexes = [
        shape.vision_layers - 1
    ]  # the others see windows, as in released models
    model: Any = type(network.model)(config)
    numbers = numpy.random.Generator(numpy.random.PCG64(shape.seed))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = torch.from_numpy(numbers.standard_normal(tuple(parameter.shape), dtype=numpy.float32))
            parameter.copy_(1 + 0.1 * drawn if "norm" in name and name.endswith("weight") else 0.06 * drawn)
    model.save_pretrained(folder)
    _raise_pixel_limit(folder, 4096)
    write_card(folder, FAMILY, "fp32", context)


def _raise_pixel_limit(folder: Path, image_tokens: int) -> None:
    """Tiny processors stop at 64 image tokens."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    most = image_tokens * SIDE_OF_TOKEN**2
    processor.image_processor.size = {"shortest_edge": SIDE_OF_TOKEN**2, "longest_edge": most}
    processor.save_pretrained(folder)
