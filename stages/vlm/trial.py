"""Reads tokenizer, processor and chat template of a foreign checkpoint once, in a process with limits.

A chat template is a program (Jinja, in the sandbox of transformers), and the patterns of a tokenizer can take time
without end. The sandbox hides Python's insides and changes nothing, but it bounds neither time nor memory.
"""

import resource
import subprocess
import sys
from pathlib import Path

from stages.vlm.contents import RefusedCheckpoint

CPU_SECONDS = 30  # real processors take 1 to 3 s
MEMORY = 4 << 30  # on top of what the libraries take
WALL_SECONDS = 300.0  # with the imports: 8 s on a quiet machine


def try_reading(weights: Path, family: str) -> None:
    """Raises RefusedCheckpoint when the folder's processor can't encode a short conversation within the limits."""
    command = [sys.executable, "-m", "stages.vlm.trial", str(weights), family, str(CPU_SECONDS)]
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


def main(weights: Path, name: str, cpu_seconds: int) -> None:
    """Encodes a question, with an image where the family sees images; raises whatever goes wrong."""
    from stages.corpora.markers import IMAGE_MARKER
    from stages.vlm.reader import FAMILIES, Reader

    _limit(cpu_seconds)
    reader = Reader(FAMILIES[name], FAMILIES[name].load_processor(weights))
    images = int(reader.image_token_id >= 0)
    messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": f"{IMAGE_MARKER * images}1 + 1?"}]
    if not reader.chat.encode_prompt(messages, images):
        raise ValueError("the chat template gives no tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
