"""The parts of a model's chat template and tokenizer that keys depend on, cached in the store under `templates`.

Reading them takes torch and transformers: 0.4 GiB and several seconds. A stage whose answers are all in the store
avoids this from its second run on.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from stages.job.bounded import UnusableFile, parse_json, read_bounded
from stages.job.files import write_json
from stages.job.hashes import hash_file, hash_json
from stages.responses.key import is_sha256
from stages.vlm import checkpoint
from stages.vlm.chat import RemoteChat
from stages.vlm.checkpoint import Checkpoint

MAX_BYTES = 2**22
_SOURCE = Path(checkpoint.__file__).parent  # the code that reads templates; after a change they are read again


@dataclass(frozen=True)
class Template:
    """How messages become a model's tokens, as far as answers depend on it."""

    hash: str
    banned: tuple[int, ...]  # ids of tokens that are never sampled


def read_template(model: Checkpoint, store: Path) -> Template:
    """Returns the template of a model, from the store or else from its tokenizer."""
    if model.endpoint is not None:
        return Template(RemoteChat.template_hash, RemoteChat.banned_token_ids)
    source = [[file.name, hash_file(file)] for file in sorted(_SOURCE.glob("*.py"))]
    known_by = hash_json([model.identity, model.family, version("transformers"), version("tokenizers"), source])
    file = store / "templates" / f"{known_by}.json"
    if (kept := _read_kept(file)) is not None:
        return kept
    from stages.vlm.reader import load_chat

    chat = load_chat(model)
    template = Template(chat.template_hash, tuple(chat.banned_token_ids))
    with suppress(OSError):  # a read-only or full store still serves its answers
        write_json(file, asdict(template))
    return template


def _read_kept(file: Path) -> Template | None:
    """Returns the template in `file`; None if there is none, or it is not one: then the tokenizer is read again."""
    try:
        values = parse_json(read_bounded(file, MAX_BYTES))
    except (UnusableFile, FileNotFoundError):
        return None
    known, banned = (values.get(name) for name in ("hash", "banned")) if isinstance(values, dict) else (None, None)
    if not isinstance(known, str) or not is_sha256(known) or not isinstance(banned, list):
        return None
    return Template(known, tuple(banned)) if all(type(token) is int and token >= 0 for token in banned) else None
