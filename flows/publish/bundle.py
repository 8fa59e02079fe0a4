"""The files of a checkpoint that are published: weights, tokenizer, processor, adapter, card. Nothing that runs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.publish.facts import PublishError
from stages.job.files import replacing_folder, write_text
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.contents import RefusedCheckpoint, check_loadable
from stages.vlm.identity import CARD, decides_answers, hash_content

CARD_FILE = "README.md"
_TEXT_BYTES = 32 << 20  # files above this are weights; those below are searched for paths of this machine


@dataclass(frozen=True)
class PublishedFile:
    """A file that is published, and its name there."""

    name: str
    source: Path
    length: int


@dataclass(frozen=True)
class Bundle:
    """All files of a checkpoint that are published, without the card for people, which is made beside them."""

    files: Sequence[PublishedFile]
    left_out: Sequence[str]


def collect_bundle(checkpoint: Checkpoint, root: Path) -> Bundle:
    """Returns what is published of `checkpoint`.

    Raises PublishError for weights that are not in its folder, for a folder with code or pickles, for a link, for files
    that are not those of its card, and for a file that names a folder of this machine (`root` or the user's).
    """
    folder = checkpoint.folder
    if checkpoint.weights != folder:
        raise PublishError(f"{folder} points to weights that others made; what is published was trained here")
    try:
        check_loadable(folder)
    except RefusedCheckpoint as error:
        raise PublishError(str(error)) from error
    files, left_out = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise PublishError(f"{path} is a link; only files of the folder itself are published: remove it")
        if decides_answers(name) or name == CARD:
            files.append(PublishedFile(name, path, path.stat().st_size))
        else:
            left_out.append(name)
    if hash_content(folder) != checkpoint.identity:
        raise PublishError(
            f"{folder}: the files are not those of its card; restore them with: dvc checkout --force {folder}"
        )
    for file in files:
        _check_private(file, root)
    return Bundle(files, left_out)


def _check_private(file: PublishedFile, root: Path) -> None:
    if file.length > _TEXT_BYTES or file.name.endswith(".safetensors"):
        return
    text = file.source.read_text(encoding="utf-8", errors="replace")
    for private in (f"{root}/", f"{Path.home()}/"):
        if private in text:
            raise PublishError(f"{file.source} names the folder {private} of this machine; correct the file")


def write_bundle(bundle: Bundle, card: str, folder: Path) -> None:
    """Writes files and card into the new folder `folder`, all or nothing. Raises PublishError if it is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PublishError(f"{folder} is not empty; give a new folder, or remove it first")
    with replacing_folder(folder) as new:
        for file in bundle.files:
            place = new / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.source, place)
        write_text(new / CARD_FILE, card)
