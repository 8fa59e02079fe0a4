"""The parts of a model's chat template and tokenizer that keys depend on, cached in the store under `templates`.

Reading them takes torch and transformers: 0.4 GiB and several seconds. A stage whose answers are all in the store
avoids this from its second run on.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from stages.job.files import read_json, write_json
from stages.job.hashes import hash_file, hash_json
from stages.vlm import checkpoint
from stages.vlm.chat import RemoteChat
from stages.vlm.checkpoint import Checkpoint

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
    if not file.is_file():
        from stages.vlm.reader import load_chat

        chat = load_chat(model)
        template = Template(chat.template_hash, tuple(chat.banned_token_ids))
        with suppress(OSError):  # a read-only or full store still serves its answers
            write_json(file, asdict(template))
        return template
    kept = read_json(file)
    return Template(kept["hash"], tuple(kept["banned"]))
