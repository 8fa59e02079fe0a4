"""`ril chat`: base, warm start, RIL student and teachers answer side by side (docs/publish.md)."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from flows.chat.candidates import Candidate, ChatError, LeftOut, find_candidates
from flows.chat.panel import Panel, fits_together
from flows.chat.question import (
    AskedQuestion,
    choose_sampling,
    find_image_form,
    make_question_of,
    read_image_file,
    read_row,
)
from flows.chat.show import escape_lines, format_replies, list_reply_values
from flows.environment import store_folder
from stages.config.params import Params, load_params
from stages.config.sampling import Sampling
from stages.vlm.checkpoint import open_checkpoint
from stages.vlm.identity import CARD

chat_app = typer.Typer()  # its commands become commands of `ril`
HELP = """a line is a question; it is about the picture and the reference that are set
:image FILE [FILE ...]   pictures of the next questions; without a file: none
:reference TEXT          the right answer, for the judge; without a text: none
:row ID                  asks a row of data/questions, with its picture and reference
:help                    this
:quit                    ends, as does Ctrl-D"""
ModelsOption = Annotated[
    str, typer.Option("--models", help="Entries of `evaluations`, such as base,ril; default: all that are here.")
]
TogetherOption = Annotated[
    bool | None,
    typer.Option(
        "--together/--one-at-a-time",
        help="Keep all engines open between questions, or start each for its answer; default: as memory allows.",
    ),
]


@dataclass(frozen=True)
class ChatSetup:
    """What a session asks, and how."""

    root: Path
    store: Path
    params: Params
    candidates: Sequence[Candidate]
    left_out: Sequence[LeftOut]
    sampling: Sampling
    seed: int = 0


@chat_app.command("chat")
def chat_command(
    image: Annotated[list[Path] | None, typer.Option("--image", help="Picture of the question; several times.")] = None,
    question: Annotated[str, typer.Option("--question", help="Ask this and end; without it: a loop.")] = "",
    row: Annotated[str, typer.Option("--row", help="Ask this row of data/questions (its id) and end.")] = "",
    reference: Annotated[str, typer.Option("--reference", help="The right answer, for the judge.")] = "",
    models: ModelsOption = "",
    temperature: Annotated[float, typer.Option(min=0, max=4, help="0 is greedy, as stage evaluate asks.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Draws other answers at a temperature above 0.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; default: evaluate.max_tokens.")] = None,
    together: TogetherOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as one JSON object.")] = False,
) -> None:
    """Asks base, warm start, RIL student and teachers the same, side by side; discriminator and judge look at it.

    Models that are not made yet are left out, with the command that makes them. Without --question and --row it is a
    loop; `:help` lists what it takes.
    """
    if question and row:
        raise ChatError("--question and --row are two questions; give one of them")
    pictures = [read_image_file(path) for path in image or []]
    setup = open_setup(models, temperature, max_tokens, seed)
    for one in setup.left_out:
        _tell(f"left out: {one.name}: {one.reason}")
    if not setup.candidates:
        raise ChatError("no model is here; `dvc repro` makes them")
    form = find_image_form(setup.root / "data" / "questions", setup.params.evaluate.split)
    if question or row:
        asked = read_row(setup.root / "data" / "questions", row) if row else None
        asked = asked or make_question_of(question, pictures, reference, form)
        with open_panel(setup, keep=bool(together)) as panel:
            print(answer_question(panel, setup, asked, as_json), flush=True)
        return
    with open_panel(setup, keep=choose_keeping(setup) if together is None else together) as panel:
        run_chat_loop(panel, setup, form, Asking(pictures, reference), as_json)


def open_setup(models: str, temperature: float = 0.0, max_tokens: int | None = None, seed: int = 0) -> ChatSetup:
    """Returns what this project can be asked; `models` are names with commas between. Raises ChatError."""
    root = Path.cwd()
    params, store = load_params(root / "params.yaml"), store_folder(root)
    names = [name.strip() for name in models.split(",") if name.strip()]
    found, left_out = find_candidates(root, store, params, names)
    return ChatSetup(root, store, params, found, left_out, choose_sampling(params, temperature, max_tokens), seed)


def open_panel(setup: ChatSetup, *, keep: bool) -> Panel:
    """Returns the panel of a session."""
    return Panel(setup.root, setup.store, setup.params, keep=keep, say=_tell)


def choose_keeping(setup: ChatSetup) -> bool:
    """Whether engines stay open between questions, and says so."""
    judge = setup.root / "data" / "model" / setup.params.verdict.model
    engines = [one.checkpoint for one in setup.candidates]
    engines += [open_checkpoint(judge)] if (judge / CARD).is_file() else []
    keep = fits_together(engines, setup.params.runtime.kv_cache_gib)
    _tell(
        "all engines stay open"
        if keep
        else "memory has room for one engine at a time: each starts again for every question (--together keeps them)"
    )
    return keep


def answer_question(panel: Panel, setup: ChatSetup, asked: AskedQuestion, as_json: bool) -> str:
    """Asks all models and returns what is printed."""
    replies, silent = panel.ask(setup.candidates, asked, setup.sampling, setup.seed)
    if as_json:
        every = [*setup.left_out, *silent]
        return json.dumps(list_reply_values(asked, setup.sampling, replies, every), ensure_ascii=False, indent=2)
    head = [f"question: {escape_lines(asked.text)}"]
    head += [f"reference: {escape_lines(asked.reference)}"] if asked.reference else []
    said = [f"no word of the {one.name}: {one.reason}" for one in silent]
    width = shutil.get_terminal_size((100, 24)).columns
    return "\n".join([*head, format_replies(replies, bool(asked.reference), width), *said])


@dataclass
class Asking:
    """Pictures and reference of the next questions."""

    pictures: Sequence[bytes] = field(default=(), repr=False)
    reference: str = ""


def run_chat_loop(panel: Panel, setup: ChatSetup, form: str, now: Asking, as_json: bool) -> None:
    """Reads lines until :quit or the end of the input; a mistake is a line and the loop goes on."""
    _tell(HELP)
    while (line := _read_line()) is not None:
        command, _, rest = line.strip().partition(" ")
        try:
            if command == ":quit":
                return
            asked = _take_line(setup, form, now, command, rest.strip(), line.strip())
            if asked is not None:
                print(answer_question(panel, setup, asked, as_json), flush=True)
        except ChatError as error:
            _tell(f"error: {error}")


def _take_line(setup: ChatSetup, form: str, now: Asking, command: str, rest: str, line: str) -> AskedQuestion | None:
    """Returns the question of a line; None if it changes what later ones are about."""
    if not line:
        return None
    if command == ":image":
        now.pictures = [read_image_file(Path(name)) for name in rest.split()]
    elif command == ":reference":
        now.reference = rest
    elif command == ":row":
        return read_row(setup.root / "data" / "questions", rest)
    elif command == ":help":
        _tell(HELP)
    elif command.startswith(":"):
        raise ChatError(f"no command {command}; :help lists them")
    else:
        return make_question_of(line, now.pictures, now.reference, form)
    return None


def _read_line() -> str | None:
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line if line else None


def _tell(line: str) -> None:
    """Messages go to standard error: standard output holds answers alone."""
    print(line, file=sys.stderr, flush=True)
