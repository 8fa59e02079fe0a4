"""What a model sees of a question: its pixels as pictures, its prompt token by token, and the page that shows both."""

import base64
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.corpora.adapters import UnusableRow
from stages.corpora.images import open_image
from stages.corpora.rows import Question
from stages.page.render import render_data_page
from stages.page.seen_questions import SeenQuestion, make_section, show_question
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import Reader, load_reader
from tests.stages.page.elements import Elements

ATTACK = '<|im_end|></p><script>document.title = "taken"</script><image>'


def ramp(width: int, height: int) -> bytes:
    """A picture that differs everywhere, so that a patch in the wrong place is seen."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    buffer = io.BytesIO()
    Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def asked(text: str, *images: bytes, target: str | None = "The sum is 16.") -> Question:
    message = {"role": "user", "content": "<image>" * len(images) + text}
    return Question("q1", images, ("0" * 64,) * len(images), (message,), target, "16", "digits", "sum")


@pytest.fixture
def reader(tiny: Callable[[str], Checkpoint], family: str) -> Reader:
    return load_reader(tiny(family))


def test_pixels_become_the_picture_that_was_given(reader: Reader, family: str) -> None:
    images = [ramp(84, 56), ramp(84, 84)]
    pixels = reader.make_pixels(images)
    restored = reader.restore_pictures(pixels)
    assert [len(tiles) for tiles in restored] == ([1, 1] if family != "internvl3" else list(pixels.rows))
    for image, tiles in zip(images, restored, strict=True):
        whole = tiles[-1]
        meant = open_image(image).resize(whole.size, Image.Resampling.BICUBIC)
        difference = np.abs(np.asarray(whole).astype(int) - np.asarray(meant).astype(int))
        assert difference.mean() < 2


def test_pieces_are_the_tokens_of_the_prompt(reader: Reader) -> None:
    question = asked("What is it?", ramp(84, 56), ramp(84, 84))
    seen = show_question(question, reader, 256)
    ids = reader.make_prompt(question.messages, question.images).ids.tolist()
    assert sum(piece.tokens for piece in seen.prompt) == len(ids) == seen.lengths["prompt"]
    assert [piece.tokens for piece in seen.prompt if piece.kind == "image"] == [image.tokens for image in seen.images]
    assert all(piece.tokens == 1 for piece in seen.prompt if piece.kind == "special")
    tokenizer = reader.chat.tokenizer
    spelled = "".join(piece.text * (piece.tokens if piece.kind == "image" else 1) for piece in seen.prompt)
    assert spelled == tokenizer.decode(ids)
    assert [piece.kind for piece in seen.target] == ["text", "special"]
    assert seen.images[0].given == (84, 56)


def test_a_special_token_in_a_text_is_text(reader: Reader) -> None:
    seen = show_question(asked("Is <|im_end|> a word?", target=None), reader, 256)
    assert any("Is <|im_end|> a word?" in piece.text for piece in seen.prompt if piece.kind == "text")
    assert seen.target == ()
    assert not seen.too_long
    assert show_question(asked("What? " * 100), reader, 64).too_long


def page_of(reader: Reader, *more: Question, rejects: list[UnusableRow] | None = None) -> str:
    questions: list[SeenQuestion] = [show_question(one, reader, 256) for one in more]
    return render_data_page(make_section(questions, "rows.json", "data/model/student", 2000, rejects or []))


def test_the_page_shows_everything_and_loads_nothing(reader: Reader) -> None:
    rejects = [UnusableRow(7, "q7", "no question", "rows.json", "question", "None")]
    text = page_of(
        reader, asked(ATTACK.replace("<image>", ""), ramp(84, 56)), asked("Why?", target=None), rejects=rejects
    )
    found = Elements(text)
    assert not [tag for tag, _ in found.tags if tag in ("script", "iframe", "link") and tag != "link"]
    assert "taken" in found.words
    for tag, attributes in found.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    alternatives = [attributes.get("alt") or "" for tag, attributes in found.tags if tag == "img"]
    assert alternatives
    assert all("of question q1, as the model sees it" in one for one in alternatives)
    for words in ("2 of 2,000 questions", "no image", "row 7", "no question", "84 × 56 →", "Target of the warm start"):
        assert words in found.words


def test_large_pictures_are_jpeg(reader: Reader) -> None:
    from stages.page.seen_questions import make_small_uri

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8))
    uri = make_small_uri(noise)
    assert uri.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (300, 300)


def test_nothing_to_show_is_said() -> None:
    section: dict[str, Any] = make_section([], "Not shown: the model is not here", "", None)
    assert "Not shown: the model is not here" in Elements(render_data_page(section)).words


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_the_page_fits_a_phone_and_a_screen(reader: Reader, tmp_path: Path, width: int, dark: bool) -> None:
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    long = asked(f"{ATTACK.replace('<image>', '')} {'W' * 500}", ramp(84, 56), ramp(500, 400), target="x" * 300)
    (tmp_path / "data.html").write_text(page_of(reader, long, asked("Why?")))
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in f"--headless=new --no-sandbox --disable-gpu --user-data-dir={tmp_path / 'profile'}".split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    shown = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        shown.get((tmp_path / "data.html").as_uri())
        assert shown.execute_script("return document.documentElement.scrollWidth") <= width
        seen = "return [...document.images].every((one) => one.complete && one.naturalWidth > 0 && one.alt)"
        assert shown.execute_script(seen)
        assert shown.title == "RIL: questions as the model sees them"
        assert shown.execute_script("return document.scripts.length") == 0
        ground = shown.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(18, 22, 29)") == dark
        assert [one for one in shown.get_log("browser") if one["level"] in ("SEVERE", "WARNING")] == []
    finally:
        shown.quit()
