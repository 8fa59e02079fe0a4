"""Reads tokenizer, processor and chat template of a foreign checkpoint once, in a process with limits.

A chat template is a program (Jinja, in the sandbox of transformers), and the patterns of a tokenizer can take time
without end. The sandbox hides Python's insides and changes nothing, but it bounds neither time nor memory.
"""

import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.config.image_limits import NO_LIMITS, ImageLimits, read_limits
from stages.vlm.contents import RefusedCheckpoint
from stages.vlm.promises import Facts

CPU_SECONDS = 30  # real processors take 1 to 3 s
MEMORY = 4 << 30  # on top of what the libraries take
WALL_SECONDS = 300.0  # with the imports: 8 s on a quiet machine


@dataclass(frozen=True)
class FoundLimits:
    """The limits on images of a checkpoint's processor."""

    own: ImageLimits
    fitting: ImageLimits  # what must be set so that no image takes more than the tokens asked for


@dataclass(frozen=True)
class Trial:
    """What was read of a checkpoint's small files."""

    limits: FoundLimits
    facts: Facts


def try_reading(weights: Path, family: str, image_tokens: int) -> Trial:
    """Returns the facts of a folder's config and tokenizer, and its processor's limits, `fitting` for `image_tokens`.

    There are no limits where the tokenizer lacks what a prompt is made with; the facts say so.

    Raises RefusedCheckpoint when it can't encode a short conversation within the limits of time and memory.
    """
    arguments = [str(weights), family, str(CPU_SECONDS), str(image_tokens)]
    command = [sys.executable, "-m", "stages.vlm.trial", *arguments]
    place = Path(__file__).parents[2]
    try:
        done = subprocess.run(
            command, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, timeout=WALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RefusedCheckpoint(_explain(weights, f"takes more than {WALL_SECONDS:.0f} s")) from None
    if done.returncode < 0:
        raise RefusedCheckpoint(_explain(weights, f"takes more than {CPU_SECONDS} s of CPU time, or crashes"))
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise RefusedCheckpoint(_explain(weights, f"fails with {said[-1][:300]}"))
    own, fitting, facts = json.loads(done.stdout.splitlines()[-1])
    return Trial(FoundLimits(read_limits(own), read_limits(fitting)), Facts(**facts))


def _explain(weights: Path, what: str) -> str:
    return (
        f"{weights}: reading its tokenizer, processor and chat template {what}; restore these files, or use another "
        "checkpoint"
    )


def _limit(cpu_seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + cpu_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    room = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(weights: Path, name: str, cpu_seconds: int, image_tokens: int) -> None:
    """Encodes a question, with an image where the family sees images; raises whatever goes wrong.

    Prints the processor's limits on images, those that fit `image_tokens`, and the facts, as the last line.
    """
    from stages.corpora.markers import IMAGE_MARKER
    from stages.vlm.family import Pixels
    from stages.vlm.reader import FAMILIES, NO_VALUES, Reader
    from stages.vlm.vocabulary import read_ends

    _limit(cpu_seconds)
    family, known = FAMILIES[name], _read_config(weights)
    processor = family.load_processor(weights)
    tokenizer = getattr(processor, "tokenizer", processor)
    facts = Facts(
        **known,
        template=bool(tokenizer.chat_template),
        end=tokenizer.eos_token,
        end_id=tokenizer.eos_token_id,
        plain=1 + max(tokenizer._tokenizer.get_vocab(with_added_tokens=False).values()),
        known=1 + max(tokenizer.get_vocab().values()),
        read_image_token=family.find_image_token_id(processor),
        used={},
        banned={},
        ends=read_ends(weights),
    )
    if not facts.template or facts.end is None:
        print(json.dumps([NO_LIMITS.list_set(), NO_LIMITS.list_set(), asdict(facts)]))
        return
    reader = Reader(family, processor, facts.vocabulary)
    images = int(reader.image_token_id >= 0)
    messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": f"{IMAGE_MARKER * images}1 + 1?"}]
    ids = reader.chat.encode_prompt(messages, images)
    if not ids:
        raise ValueError("the chat template gives no tokens")
    if images:
        ids = family.expand(processor, ids, Pixels(NO_VALUES, None, (), (1,)))
    facts.used.update({str(tokenizer.convert_ids_to_tokens(one)): one for one in ids if one >= facts.plain})
    facts.banned.update({str(tokenizer.convert_ids_to_tokens(one)): one for one in reader.chat.banned_token_ids})
    print(json.dumps([reader.image_limits.list_set(), reader.fit_images(image_tokens).list_set(), asdict(facts)]))


def _read_config(weights: Path) -> dict[str, Any]:
    """Returns what config.json says, in the words of `Facts`."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(weights, trust_remote_code=False, local_files_only=True)
    text = config.get_text_config(decoder=True)
    quantization = getattr(config, "quantization_config", None)
    method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else None
    image_token = getattr(config, "image_token_id", None)
    return {
        "vocabulary": int(text.vocab_size),
        "positions": _count_positions(text),
        "quantization": method,
        "image_token": None if image_token is None else int(image_token),
    }


def _count_positions(text: Any) -> int | None:
    """Returns the tokens that rotary positions reach, as vLLM counts them: stretched by the factor of the scaling."""
    reach = getattr(text, "max_position_embeddings", None)
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if reach is None or not isinstance(scaling, dict):
        return reach
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("default", "mrope", "su", "longrope", "llama3", "proportional"):
        return int(reach)
    if kind == "yarn":
        reach = scaling.get("original_max_position_embeddings", reach)
    return int(reach * scaling.get("factor", 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
