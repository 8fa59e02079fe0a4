"""Image files of every awkward kind: rejected with a reason, or seen alike by training and by engines."""

import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from flows.jobs import open_job
from stages import questions
from stages.config.params import validate_params
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.config.yaml import merge_params, read_yaml
from stages.corpora.adapters import read_user_rows
from stages.corpora.images import UnreadableImage, make_portable, open_image, read_upright_size
from stages.corpora.rows import read_questions
from stages.engines.engine import Request
from stages.engines.vllm import VllmEngine
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_reader

SIDE = (84, 56)


def scene() -> Image.Image:
    """A picture without symmetry: a ramp in each colour and a dark corner."""
    width, height = SIDE
    across, down = np.meshgrid(np.linspace(40, 255, width), np.linspace(0, 220, height))
    pixels = np.stack([across, down, 255 - across], -1).astype(np.uint8)
    pixels[:14, :28] = 10
    return Image.fromarray(pixels)


def saved(picture: Image.Image, form: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **more)
    return buffer.getvalue()


def sideways() -> bytes:
    """The scene as a camera held upright stores it: lying, with orientation 6 in its EXIF data."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return saved(scene().transpose(Image.Transpose.ROTATE_90), exif=exif)


def sixteen_bit(endless: bool = False) -> bytes:
    grey = np.asarray(scene().convert("L")).astype(np.uint16) * 257
    return saved(Image.fromarray(grey.astype(np.int32) if endless else grey), "TIFF" if endless else "PNG")


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header claims width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def see_through() -> bytes:
    """The scene, its right half transparent over black."""
    picture = scene().convert("RGBA")
    pixels = np.array(picture)
    pixels[:, SIDE[0] // 2 :] = (0, 0, 0, 0)
    return saved(Image.fromarray(pixels))


def half_white() -> Image.Image:
    pixels = np.array(scene())
    pixels[:, SIDE[0] // 2 :] = 255
    return Image.fromarray(pixels)


def frames(form: str) -> bytes:
    return saved(scene(), form, save_all=True, append_images=[scene().rotate(180)])


def grey(picture: Image.Image) -> Image.Image:
    return picture.convert("L").convert("RGB")


PNG, JPEG = saved(scene()), saved(scene(), "JPEG", quality=95)
REJECTED = {
    "zero-byte": (b"", "unreadable image: cannot identify a picture in 0 bytes"),
    "no image": (b"once upon a time", "unreadable image: not one of the formats"),
    "truncated PNG": (PNG[: len(PNG) // 2], "unreadable image"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "unreadable image: OSError: image file is truncated"),
    "header alone": (PNG[:40], "unreadable image"),
    "broken checksum": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "unreadable image"),
    "100 megapixels": (claiming(10_000, 10_000), "image of 10000 x 10000 = 100,000,000 pixels, more than 50,000,000"),
    "4 gigapixels": (claiming(65_000, 65_000), "unreadable image: DecompressionBombError"),
    "a line": (saved(Image.new("RGB", (1000, 2))), "one side is more than 200 times the other"),
    "animated GIF": (frames("GIF"), "image of 2 frames"),
    "animated PNG": (frames("PNG"), "image of 2 frames"),
    "animated WebP": (frames("WEBP"), "image of 2 frames"),
    "pages of a TIFF": (frames("TIFF"), "image of 2 frames"),
    "32 bits a pixel": (sixteen_bit(endless=True), "no known range"),
}
# file, the picture that every model must see, largest difference that the file's own losses allow
SEEN: Mapping[str, tuple[bytes, Image.Image, int]] = {
    "PNG": (PNG, scene(), 0),
    "JPEG": (JPEG, scene(), 90),
    "EXIF-rotated PNG": (sideways(), scene(), 0),
    "CMYK JPEG": (saved(scene().convert("CMYK"), "JPEG", quality=98, subsampling=0), scene(), 60),
    "CMYK TIFF": (saved(scene().convert("CMYK"), "TIFF"), scene(), 2),
    "16-bit grey": (sixteen_bit(), grey(scene()), 0),
    "grey": (saved(scene().convert("L")), grey(scene()), 0),
    "palette": (saved(scene().quantize(256)), scene().quantize(256).convert("RGB"), 0),
    "transparent": (see_through(), half_white(), 0),
    "one frame of a GIF": (saved(scene().quantize(256), "GIF"), scene().quantize(256).convert("RGB"), 0),
    "photo with a second picture": (frames("MPO"), scene(), 90),
    "one pixel": (saved(Image.new("RGB", (1, 1), (9, 99, 199))), Image.new("RGB", (1, 1), (9, 99, 199)), 0),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_no_model_can_be_shown_is_refused_with_its_reason(name: str) -> None:
    image, reason = REJECTED[name]
    with pytest.raises(UnreadableImage) as error:
        open_image(image, 50_000_000)
    assert reason in str(error.value)


@pytest.mark.parametrize("name", SEEN)
def test_a_good_file_is_seen_as_it_was_meant(name: str) -> None:
    image, meant, tolerance = SEEN[name]
    seen = open_image(image)
    assert (seen.mode, seen.size) == ("RGB", meant.size)
    difference = np.abs(np.asarray(seen).astype(int) - np.asarray(meant).astype(int))
    assert difference.max() <= tolerance
    assert difference.mean() <= tolerance / 8


@pytest.mark.parametrize("name", SEEN)
def test_what_is_sent_to_other_decoders_shows_the_same(name: str) -> None:
    sent = make_portable(SEEN[name][0])
    with Image.open(io.BytesIO(sent)) as opened:
        plainly = opened.convert("RGB")
    assert np.array_equal(np.asarray(plainly), np.asarray(open_image(SEEN[name][0])))
    assert (sent == SEEN[name][0]) == (name in ("PNG", "JPEG", "grey", "one pixel"))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 20_000))
def test_an_image_is_sent_no_larger_than_asked(width: int, height: int, max_pixels: int) -> None:
    width, height = max(width, height // 200 + 1), max(height, width // 200 + 1)
    image = saved(Image.new("RGB", (width, height), "red"))
    sent = make_portable(image, max_pixels)
    assert (sent == image) == (width * height <= max_pixels)
    factor = (min(1.0, max_pixels / (width * height))) ** 0.5
    found = read_upright_size(sent)
    assert found[0] * found[1] <= max_pixels or sent == image
    for side, before in zip(found, (width, height), strict=True):
        assert side <= max(1.0, before * factor)
        assert side > before * factor - 1 or min(found) == 1


def test_training_sees_the_picture_that_was_meant(tiny: Callable[[str], Checkpoint], family: str) -> None:
    reader = load_reader(tiny(family))
    for name, (image, _, _) in SEEN.items():
        meant = reader.make_pixels([saved(open_image(image))])
        assert torch.equal(reader.make_pixels([image]).values, meant.values), name


@pytest.mark.slow
def test_the_engine_sees_the_picture_that_was_meant(
    tiny: Callable[[str], Checkpoint], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes into vLLM is what training sees; vLLM answers to all of it."""
    engine = VllmEngine(tiny(family), Runtime())
    seen: list[np.ndarray] = []
    render = engine._engine.renderer.render_cmpl

    def watched(prompts: list[dict[str, Any]]) -> Any:
        seen.extend(np.asarray(picture) for prompt in prompts for picture in prompt["multi_modal_data"]["image"])
        return render(prompts)

    monkeypatch.setattr(engine._engine.renderer, "render_cmpl", watched)
    messages = [{"role": "user", "content": "<image>What is the sum?"}]
    greedy = Sampling(temperature=0.0, max_tokens=4)
    requests = [Request(name, messages, [image], greedy) for name, (image, _, _) in SEEN.items()]
    try:
        answers = dict(engine.generate(requests))
    finally:
        engine.close()
    assert sorted(answers) == list(range(len(SEEN)))
    for picture, (name, (image, _, _)) in zip(seen, SEEN.items(), strict=True):
        assert np.array_equal(picture, np.asarray(open_image(image))), name


def row_of(
    name: str, question: Any = "<image>\nWhat is it?", answer: Any = "a ramp", image: Any = "good.png"
) -> dict[str, Any]:
    return {
        "id": name,
        "image": image,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
    }


TEXTS_REJECTED = {
    "marker too many": (row_of("", "<image> and <image>?"), "2 <image> markers in the text, 1 images"),
    "marker in the answer alone": (row_of("", "What?", "a <image>"), "0 <image> markers in the text, 1 images"),
    "too long": (
        row_of("", "<image>" + "long " * 4000),
        "characters of text, more than questions.max_characters (16,000)",
    ),
    "half a character": (row_of("", "<image>what is \ud83d?"), "the character U+D83D"),
    "our own mark": (row_of("", "<image>what is \ue000?"), "the character U+E000"),
    "number as answer": (row_of("", answer=28), "conversations.1.value = 28: expected text"),
    "no question": (row_of("", "<image> \n"), "no question"),
    "no answer": (row_of("", answer=" "), "no reference answer"),
    "null": (row_of("", answer=None), "conversations.1.value = None: expected text"),
    "no turns": ({"id": "", "image": "good.png"}, "conversations is missing; add it"),
    "unknown speaker": (
        {"image": "good.png", "conversations": [{"from": "tool", "value": "x"}]},
        "conversations.0.from = 'tool': should be 'human'",
    ),
    "no row": ("What is it?", "'What is it?': expected an object"),
    "outside": (row_of("", image="../secret.png"), "is outside the folder"),
    "a folder": (row_of("", image="."), "is outside the folder"),
    "number as image": (row_of("", image=7), "image = 7: expected a path or a list of paths"),
}
TEXTS_READ = {
    "special tokens": row_of("", "<image>What does <|im_end|><|im_start|>system mean?", "<|im_end|> ends a turn"),
    "vision tokens": row_of("", "<image>What is <|image_pad|> or <IMG_CONTEXT>?", "a placeholder"),
    "marker in the answer too": row_of("", "<image>What stands for the picture?", "the marker <image>"),
    "no image": row_of("", "What is 2 + 2?", "4", image=None),
    "emoji and right to left": row_of("", "<image>\u200fما هذا؟ 🙂", "قطة"),
}


def test_every_bad_row_is_named_with_its_reason_and_every_good_one_is_kept(tmp_path: Path, root: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "good.png").write_bytes(PNG)
    rows: list[Any] = []
    reasons: dict[str, str] = {}

    def add(name: str, row: Any, reason: str | None) -> None:
        rows.append({**row, "id": name} if isinstance(row, dict) else row)
        if reason is not None:
            reasons[name if isinstance(row, dict) else f"row {len(rows) - 1}"] = reason

    for number, (name, (image, reason)) in enumerate(REJECTED.items()):
        (folder / f"bad{number}").write_bytes(image)
        add(name, row_of(name, image=f"bad{number}"), reason)
    for name, (row, reason) in TEXTS_REJECTED.items():
        add(name, row, reason)
    for number, (name, (image, _, _)) in enumerate(SEEN.items()):
        (folder / f"seen{number}").write_bytes(image)
        add(name, row_of(name, image=f"seen{number}"), None)
    for name, row in TEXTS_READ.items():
        add(name, row, None)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    good = len(rows) - len(reasons)
    # rows that share good.png stay in one split, so the splits are as large as the shares of pictures allow
    given = {"kind": "llava", "path": "rows.json", "images": "images", "max_reject_share": 0.9}
    splits = {"warm_start": 1, "imitation": 1, "validation": 1, "test": 1}
    params = validate_params(merge_params(read_yaml(root / "params.yaml"), {"questions": {**given, "splits": splits}}))
    job = open_job("questions", None, tmp_path, params)
    questions.run(job)
    written = [
        json.loads(line) for line in (tmp_path / "reports/questions/rejects.jsonl").read_text("utf-8").splitlines()
    ]
    assert {row["id"] for row in written} == set(reasons)
    for row in written:
        assert reasons[row["id"]] in row["reason"], row
    read = [row for row in read_user_rows(params.questions, tmp_path) if isinstance(row, dict)]
    assert {row["id"] for row in read} == set(SEEN) | set(TEXTS_READ)
    assert len(read) == good
    assert all(read_questions(tmp_path / "data/questions", split) for split in splits)
