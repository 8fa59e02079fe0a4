"""`ril card` and `ril push`: a trained model for others, with its card (docs/publish.md)."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.publish.bundle import CARD_FILE, Bundle, collect_bundle, write_bundle
from flows.publish.card import make_model_card
from flows.publish.facts import CheckpointFacts, PublishError, collect_facts
from stages.config.params import load_params
from stages.job.files import write_text

HUB = "hub:"
publish_app = typer.Typer()  # its commands become commands of `ril`
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", help="data/ril/model, data/ril/last or data/warm_start.")
]
LicenceOption = Annotated[
    str | None,
    typer.Option("--licence", help="The hub's name of the licence of this checkpoint; default: that of its base."),
]


@publish_app.command("card")
def card_command(
    checkpoint: CheckpointOption = "data/ril/model",
    licence: LicenceOption = None,
    out: Annotated[Path | None, typer.Option(help="Write it to this file instead of showing it.")] = None,
) -> None:
    """Shows the model card of a checkpoint, made from the results that are here now."""
    facts = _collect(checkpoint)
    card = make_model_card(facts, checkpoint, licence)
    if out is None:
        print(card, end="")
    else:
        write_text(out, card)
        print(out)


@publish_app.command("push")
def push_command(
    target: Annotated[str, typer.Argument(help="A new folder, or hub:OWNER/NAME.")],
    checkpoint: CheckpointOption = "data/ril/model",
    licence: LicenceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be written or uploaded.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Everybody may read it; default: private.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without asking.")] = False,
) -> None:
    """Writes a checkpoint with its card to a folder, or uploads it to the hub, private by default.

    Lists the files first. Uploads need RIL_ALLOW_DOWNLOADS=1 and a token (HF_TOKEN, or `hf auth login`).
    """
    facts = _collect(checkpoint)
    name = target.removeprefix(HUB)
    bundle = collect_bundle(facts.checkpoint, Path.cwd())
    card = make_model_card(facts, name, licence)
    print(format_bundle(bundle, card))
    for line in facts.unmeasured:
        print(f"not measured: {line}")
    if target.startswith(HUB):
        _upload(bundle, card, name, public=public, yes=yes, dry_run=dry_run)
    elif dry_run:
        print(f"dry run: nothing was written to {target}")
    else:
        write_bundle(bundle, card, Path(target))
        print(f"written: {target}")


def _collect(checkpoint: str) -> CheckpointFacts:
    root = Path.cwd()
    return collect_facts(root, load_params(root / "params.yaml"), checkpoint.rstrip("/"))


def _upload(bundle: Bundle, card: str, name: str, *, public: bool, yes: bool, dry_run: bool) -> None:
    who = "public: everybody may read it" if public else "private"
    if dry_run:
        print(f"dry run: nothing was uploaded to {name} ({who})")
        return
    from flows.publish.upload import check_upload, upload_bundle  # local import: reads the environment

    check_upload(name)
    if not yes:
        if not sys.stdin.isatty():
            raise PublishError("nothing was uploaded: --yes uploads without asking")
        typer.confirm(f"upload {len(bundle.files) + 1} files to {name} ({who})?", abort=True)
    print(f"uploaded: {upload_bundle(bundle, card, name, public)}")


def format_bundle(bundle: Bundle, card: str) -> str:
    """Returns the files with their lengths in bytes, those that are left out, and the sum."""
    rows = [(file.name, file.length) for file in bundle.files] + [(CARD_FILE, len(card.encode()))]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {length:>15,}" for name, length in sorted(rows)]
    lines += [f"{name.ljust(width)}  left out" for name in bundle.left_out]
    return "\n".join([*lines, f"{len(rows)} files, {sum(length for _, length in rows):,} bytes"])
