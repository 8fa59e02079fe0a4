"""Reads tokenizer, processor and chat template of a foreign checkpoint once, in a process with limits.

A chat template is a program (Jinja, in the sandbox of transformers), and the patterns of a tokenizer can take time
without end. The sandbox hides Python's insides and changes nothing, but it bounds neither time nor memory.
"""

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from stages.config.image_limits import ImageLimits, read_limits
from stages.vlm.contents import RefusedCheckpoint

CPU_SECONDS = 30  # real processors take 1 to 3 s
MEMORY = 4 << 30  # on top of what the libraries take
WALL_SECONDS = 300.0  # with the imports: 8 s on a quiet machine


@dataclass(frozen=True)
class FoundLimits:
    """The limits on images of a checkpoint's processor."""

    own: ImageLimits
    fitting: ImageLimits  # what must be set so that no image takes more than the tokens asked for


def try_reading(weights: Path, family: str, image_tokens: int) -> FoundLimits:
    """Returns the limits on images of a folder's processor, `fitting` for `image_tokens`.

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
    own, fitting = json.loads(done.stdout.splitlines()[-1])
    return FoundLimits(read_limits(own), read_limits(fitting))


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

    Prints the processor's limits on images, and those that fit `image_tokens`, as the last line.
    """
    from stages.corpora.markers import IMAGE_MARKER
    from stages.vlm.reader import FAMILIES, Reader

    _limit(cpu_seconds)
    reader = Reader(FAMILIES[name], FAMILIES[name].load_processor(weights))
    images = int(reader.image_token_id >= 0)
    if not reader.chat.tokenizer.chat_template:
        raise ValueError(
            "no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): a base model, which "
            "answers no questions; take its -Instruct model, or a folder with that model's template"
        )
    messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": f"{IMAGE_MARKER * images}1 + 1?"}]
    if not reader.chat.encode_prompt(messages, images):
        raise ValueError("the chat template gives no tokens")
    print(json.dumps([reader.image_limits.list_set(), reader.fit_images(image_tokens).list_set()]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
