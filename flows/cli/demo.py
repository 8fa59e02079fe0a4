"""`ril demo`: a page on loopback that asks the models of this run side by side (docs/publish.md)."""

import base64
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer

from flows.chat.candidates import ChatError
from flows.chat.demo import PageQuestion, serve_demo
from flows.chat.panel import Panel
from flows.chat.question import find_image_form, list_examples, make_question_of, read_row
from flows.chat.served_model import LOOPBACK_HOST
from flows.chat.show import list_reply_values
from flows.cli.chat import ChatSetup, ModelsOption, TogetherOption, choose_keeping, open_panel, open_setup
from flows.ui.ports import find_holder

demo_app = typer.Typer()  # its commands become commands of `ril`
_LOOK_SECONDS = 1.0


@demo_app.command("demo")
def demo_command(
    models: ModelsOption = "",
    together: TogetherOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port on 127.0.0.1; 0 takes a free one.")] = 0,
) -> None:
    """Shows a page on loopback that asks the models side by side, until Ctrl-C; the link holds its key."""
    if port and (holder := find_holder(LOOPBACK_HOST, port)):
        raise ChatError(f"port {port} is held by {holder}; take another one with --port")
    setup = open_setup(models)
    if not setup.candidates:
        missing = "; ".join(f"{one.name}: {one.reason}" for one in setup.left_out)
        raise ChatError(f"no model is here: {missing}")
    keep = choose_keeping(setup) if together is None else together
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with open_panel(setup, keep=keep) as panel, serve_demo(LOOPBACK_HOST, port, describe_setup(setup)) as demo:
            print(f"page: {demo.link}\nCtrl-C ends it", flush=True)
            while True:
                demo.answer_next(lambda asked: answer_page(panel, setup, asked), _LOOK_SECONDS)
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)


def describe_setup(setup: ChatSetup) -> dict[str, Any]:
    """Returns what the page shows before a question."""
    examples = list_examples(setup.root / "data" / "questions", setup.params.evaluate.split)
    return {
        "models": [{"name": one.name, "title": one.title} for one in setup.candidates],
        "left_out": {one.name: one.reason for one in setup.left_out},
        "examples": [
            {
                "row": one.name,
                "question": one.text,
                "reference": one.reference,
                "pictures": [base64.b64encode(image).decode() for image in one.images],
            }
            for one in examples
        ],
    }


def answer_page(panel: Panel, setup: ChatSetup, asked: PageQuestion) -> dict[str, Any]:
    """Returns the answers to a question of the page as JSON values; raises ChatError for one that cannot be asked."""
    folder = setup.root / "data" / "questions"
    if asked.row:
        question = read_row(folder, asked.row)
    else:
        form = find_image_form(folder, setup.params.evaluate.split)
        question = make_question_of(asked.text, asked.pictures, asked.reference, form)
    chosen = [one for one in setup.candidates if one.name in asked.models]
    if not chosen:
        raise ChatError("choose a model")
    replies, silent = panel.ask(chosen, question, setup.sampling)
    return list_reply_values(question, setup.sampling, replies, [*setup.left_out, *silent])


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
