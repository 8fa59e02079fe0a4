"""Questions as a model sees them: images behind its processor, the prompt token by token where special tokens stand."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup
from PIL import Image

from stages.config.report import Report
from stages.corpora.images import read_upright_size
from stages.corpora.rows import Question, read_questions
from stages.job.job import Job

if TYPE_CHECKING:
    from stages.vlm.reader import Reader

MOST_PNG_BYTES = 100_000  # of a picture; larger ones are shown as JPEG of quality 90, so that pages stay small
MOST_TILES = 13  # pictures of one image; InternVL has 12 tiles and a thumbnail


@dataclass(frozen=True)
class Piece:
    """Tokens of a prompt that stand together."""

    kind: Literal["text", "special", "image"]
    text: str
    tokens: int


@dataclass(frozen=True)
class SeenImage:
    """An image as the processor passes it on."""

    tiles: tuple[Markup, ...]  # data: URLs, in the order of the model
    size: tuple[int, int]  # of a tile
    given: tuple[int, int]  # of the user's image
    tokens: int


@dataclass(frozen=True)
class SeenQuestion:
    """One question with all that a model is given and shall answer."""

    id: str
    kind: str
    source: str
    images: tuple[SeenImage, ...]
    prompt: tuple[Piece, ...]
    target: tuple[Piece, ...]  # of the warm start; empty if the question has none
    reference: str
    context: int
    lengths: Mapping[str, int] = field(default_factory=dict)  # tokens by part

    @property
    def too_long(self) -> bool:
        """Whether prompt and target are longer than the context, so that stages leave the question out."""
        return self.lengths["prompt"] + self.lengths["target"] > self.context


def show_question(question: Question, reader: "Reader", context: int) -> SeenQuestion:
    """Returns what a model sees of `question`."""
    prompt = reader.make_prompt(question.messages, question.images)
    images: tuple[SeenImage, ...] = ()
    if prompt.pixels is not None:
        restored = reader.restore_pictures(prompt.pixels)
        images = tuple(
            SeenImage(tuple(map(make_small_uri, tiles[:MOST_TILES])), tiles[0].size, read_upright_size(given), tokens)
            for tiles, given, tokens in zip(restored, question.images, prompt.pixels.tokens, strict=True)
        )
    ids, answer = prompt.ids.tolist(), reader.chat.encode_response(question.target) if question.target else []
    return SeenQuestion(
        id=question.id,
        kind=question.kind,
        source=question.source,
        images=images,
        prompt=tuple(iter_pieces(reader, ids)),
        target=tuple(iter_pieces(reader, answer)),
        reference=question.answer,
        context=context,
        lengths={"prompt": len(ids), "images": sum(image.tokens for image in images), "target": len(answer)},
    )


def iter_pieces(reader: "Reader", ids: Sequence[int]) -> Iterator[Piece]:
    """Yields special tokens one by one, image tokens as one piece an image, and the texts between them."""
    tokenizer = reader.chat.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    start = 0
    for end in range(1, len(ids) + 1):
        kind = _classify(ids[start], reader.image_token_id, special)
        if end < len(ids) and kind != "special" and _classify(ids[end], reader.image_token_id, special) == kind:
            continue
        run = list(ids[start:end])
        named = tokenizer.convert_ids_to_tokens(run[0]) if kind != "text" else tokenizer.decode(run)
        yield Piece(kind, str(named), len(run))
        start = end


def _classify(token: int, image: int, special: set[int]) -> Literal["text", "special", "image"]:
    return "image" if token == image else "special" if token in special else "text"


def make_small_uri(picture: Image.Image) -> Markup:
    """The picture as a `data:` URL: PNG, or JPEG where that would be large."""
    buffer, form = io.BytesIO(), "png"
    picture.save(buffer, "PNG")
    if buffer.tell() > MOST_PNG_BYTES:
        buffer, form = io.BytesIO(), "jpeg"
        picture.save(buffer, "JPEG", quality=90)
    text = f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Markup(text)  # nosec B704: a fixed type and base64


def make_section(
    questions: Sequence[SeenQuestion], title: str, model: str, total: int | None, rejects: Sequence[Any] = ()
) -> dict[str, Any]:
    """Returns what the template `sections/data.html` shows; `rejects` are drawn rows that cannot be used."""
    return {"questions": questions, "title": title, "model": model, "total": total, "rejects": rejects}


def show_training_questions(job: Job) -> dict[str, Any]:
    """Returns the section about `report.samples` questions of the warm start, as the student sees them.

    Without the student's processor on this machine the section says so.
    """
    from stages.vlm.checkpoint import open_checkpoint  # local imports: they take seconds
    from stages.vlm.reader import load_reader

    try:
        checkpoint = open_checkpoint(job.input("data/model") / "student")
    except FileNotFoundError as error:
        return make_section([], f"Not shown: {' '.join(str(error).split())}", "", None)
    questions = read_questions(job.input("data/questions"), "warm_start")
    order = sorted(range(len(questions)), key=lambda number: job.seed("seen", number))[: job.block(Report).samples]
    reader = load_reader(checkpoint)
    shown = [show_question(questions[number], reader, checkpoint.context_tokens) for number in order]
    return make_section(shown, "the split warm_start", "data/model/student", len(questions))
