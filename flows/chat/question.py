"""What is asked: a question of a person, or a row of the data, as the messages that stages send."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from flows.chat.candidates import ChatError
from stages.config.params import Params
from stages.config.sampling import Sampling
from stages.corpora.images import open_image
from stages.corpora.markers import IMAGE_MARKER
from stages.corpora.rows import MOST_IMAGE_BYTES, find_questions, read_questions

_SPLITS = ("test", "validation", "imitation", "warm_start")
_EXAMPLES, _LOOKED_AT = 6, 60  # shown on the page; rows that are read for them
_EXAMPLE_BYTES = 500_000  # of one example's images
_AT_FRONT = f"{IMAGE_MARKER}\n{{}}"  # where there are no data yet


@dataclass(frozen=True)
class AskedQuestion:
    """A question with its images, in the project's form."""

    text: str  # without image markers
    messages: Sequence[dict[str, str]]
    images: Sequence[bytes] = field(repr=False, default=())
    reference: str = ""  # the right answer, for the judge; "" where it is not known
    name: str = "question"  # id of the row, for messages


def make_question_of(text: str, images: Sequence[bytes], reference: str, form: str) -> AskedQuestion:
    """Returns the question of a person.

    A text with image markers is taken as it stands; else the images stand where `form` (see `find_image_form`) has
    them. Raises ChatError for an empty text, for markers without an image, and for an image that cannot be read.
    """
    if not text.strip():
        raise ChatError("the question is empty; write one with --question")
    markers = text.count(IMAGE_MARKER)
    if markers and markers != len(images):
        raise ChatError(
            f"the question has {markers} {IMAGE_MARKER} markers and {len(images)} images; give one for each"
        )
    for number, image in enumerate(images, 1):
        _check_image(image, f"image {number}")
    content = text if markers or not images else form.format(text).replace(IMAGE_MARKER, IMAGE_MARKER * len(images))
    plain = text.replace(IMAGE_MARKER, "").strip()
    return AskedQuestion(plain, [{"role": "user", "content": content}], tuple(images), reference)


def _check_image(image: bytes, what: str) -> None:
    try:
        open_image(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ChatError(f"{what} cannot be read as a picture: {' '.join(str(error).split())}") from error


def read_image_file(path: Path) -> bytes:
    """Returns the bytes of a picture; raises ChatError when there is none of a reasonable length."""
    if not path.is_file():
        raise ChatError(f"{path}: no such file; give a picture with --image")
    if path.stat().st_size > MOST_IMAGE_BYTES:
        raise ChatError(f"{path} has more than {MOST_IMAGE_BYTES:,} bytes; give a smaller picture")
    content = path.read_bytes()
    _check_image(content, str(path))
    return content


def find_image_form(folder: Path, split: str) -> str:
    """Returns how the data place an image beside the text of a question, with `{}` for the text.

    It is that of the first row with an image of `split` in `folder` (data/questions), so that models are asked as they
    were trained; in front on a line of its own where there are no data.
    """
    if not (folder / split).is_dir():
        return _AT_FRONT
    for row in read_questions(folder, split).iter_columns(["messages", "image_sha256"]):
        said = [message["content"] for message in row["messages"] if message["role"] == "user"]
        if not row["image_sha256"] or not said or IMAGE_MARKER not in said[-1]:
            continue
        before, _, after = said[-1].partition(IMAGE_MARKER)
        after = after.replace(IMAGE_MARKER, "")
        if before.strip():
            return "{}" + before[len(before.rstrip()) :] + IMAGE_MARKER
        return IMAGE_MARKER + after[: len(after) - len(after.lstrip())] + "{}"
    return _AT_FRONT


def read_row(folder: Path, name: str) -> AskedQuestion:
    """Returns the row with this id of data/questions, with its reference; raises ChatError when there is none."""
    splits = [split for split in _SPLITS if (folder / split).is_dir()]
    found = find_questions(folder, splits, [name])
    if name not in found:
        where = f"{folder} ({', '.join(splits)})" if splits else f"{folder}, which is missing: dvc repro questions"
        known = (
            next((row["id"] for row in read_questions(folder, splits[0]).iter_columns(["id"])), "") if splits else ""
        )
        raise ChatError(f"no row {name!r} in {where}{f'; the first is {known!r}' if known else ''}")
    row = found[name]
    return AskedQuestion(row.text, row.messages, tuple(row.images), row.answer, row.id)


def list_examples(folder: Path, split: str) -> list[AskedQuestion]:
    """Returns the first rows of `split` in `folder` (data/questions) that a person could have asked as they stand: one
    turn, with small images in the place of `find_image_form`. Empty where there are no data.
    """
    found: list[AskedQuestion] = []
    rows = read_questions(folder, split) if (folder / split).is_dir() else []
    form = find_image_form(folder, split)
    for place in range(min(len(rows), _LOOKED_AT)):
        row = rows[place]
        if len(found) == _EXAMPLES or not row.text.strip() or sum(map(len, row.images)) > _EXAMPLE_BYTES:
            continue
        asked = make_question_of(row.text, row.images, row.answer, form)
        if list(asked.messages) == list(row.messages):
            found.append(replace(asked, name=row.id))
    return found


def choose_sampling(params: Params, temperature: float, max_tokens: int | None) -> Sampling:
    """Returns greedy sampling as stage `evaluate` uses it, or that of the student's answers at another temperature."""
    longest = max_tokens or params.evaluate.max_tokens
    if temperature == 0:
        return Sampling(temperature=0.0, max_tokens=longest)
    return params.rollout.sampling.model_copy(update={"temperature": temperature, "max_tokens": longest})
