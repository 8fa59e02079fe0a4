"""One question to a checkpoint, answered by its own processor and class of transformers, in fp32 or fp64.

    python -m stages.vlm.reference_pass ASKED ANSWERED    JSON files; a process of its own, whose memory is free then

Nothing of this project's prompts, positions and masks is used, so that agreement with an engine says something of both.
"""

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.image_limits import NO_LIMITS, ImageLimits, read_limits
from stages.job.files import read_json, write_json
from stages.vlm.checkpoint import Checkpoint

QUESTION = "What is in the picture?"
ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Pass:
    """A prompt with its answer, and how likely each token of the answer was."""

    prompt_ids: list[int]  # images expanded
    answer_ids: list[int]
    log_probs: list[float]  # of the answer's tokens, without the tokens that are never sampled


def make_trial_picture() -> bytes:
    """Returns the picture of the question, 112 x 84 pixels, as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((112, 84)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def describe_checkpoint(weights: Path, family: str, context_tokens: int, limits: ImageLimits) -> dict[str, Any]:
    """Returns what `read_checkpoint` makes a checkpoint of, for the file of a process."""
    return {
        "weights": str(weights),
        "family": family,
        "context_tokens": context_tokens,
        "image_limits": limits.list_set() if limits != NO_LIMITS else {},
    }


def read_checkpoint(asked: dict[str, Any]) -> Checkpoint:
    """Returns the checkpoint that a process is asked about, in full precision."""
    weights = Path(asked["weights"])
    limits = read_limits(asked["image_limits"])
    return Checkpoint(weights, weights, asked["family"], "fp32", asked["context_tokens"], "", limits=limits)


def score_answer(checkpoint: Checkpoint, answer_ids: list[int], double: bool = False) -> Pass:
    """Returns a pass of transformers over the question and the given answer, in fp64 with `double`, else in fp32.

    Norms and softmax are computed in fp32 by transformers also in fp64.
    """
    import torch

    from stages.corpora.images import open_image
    from stages.vlm.reader import FAMILIES, load_reader

    family, reader = FAMILIES[checkpoint.family], load_reader(checkpoint)
    processor = family.load_processor(checkpoint.weights)
    content: Any = QUESTION
    if reader.image_token_id >= 0:
        if checkpoint.limits.list_set():
            family.limit_images(processor, checkpoint.limits)
        content = [{"type": "image", "image": open_image(make_trial_picture())}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    prompt_ids = inputs["input_ids"][0].tolist()
    added = torch.tensor([answer_ids])
    for name, filled in (("input_ids", added), ("attention_mask", added * 0 + 1), ("mm_token_type_ids", added * 0)):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], filled], dim=1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = torch.float64 if double else torch.float32
    model = family.load_model(checkpoint.weights, precision).to(device)
    with torch.no_grad():
        logits = model(**inputs.to(device)).logits[0, -len(answer_ids) - 1 : -1].to(precision)
    logits[:, reader.chat.banned_token_ids] = -torch.inf
    found = logits.log_softmax(-1).cpu().gather(1, added[0][:, None])[:, 0]
    return Pass(prompt_ids, answer_ids, found.tolist())


def main(asked: Path, answered: Path) -> None:
    """Writes the pass of the question in `asked` to `answered`."""
    given = read_json(asked)
    write_json(answered, vars(score_answer(read_checkpoint(given), given["answer_ids"], given["double"])))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
