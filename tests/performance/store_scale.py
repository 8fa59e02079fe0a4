"""A stage over many questions with every answer in the store: answers/s, and memory of the process that does it.

    python tests/performance/store_scale.py [--questions 1000000] [--answers 16] [--profile]

Makes synthetic questions and answers in a process of its own, then runs the stage's projection (keys, index, reading,
writing) in a fresh process, which prints its rate and its largest resident memory. Answers are as long as `--tokens`
says. Exit code 1 when the process took more than 1 GiB or the index more than 64 bytes an answer.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GIB = 1 << 30
SEGMENT_ANSWERS = 65_536


def asked() -> Any:
    """Who is asked: any model."""
    from stages.config.sampling import Sampling
    from stages.responses.key import GenerationSpec

    return GenerationSpec("hub/model@0123", "qwen2_5_vl", "bf16", 4096, "cd" * 32, (), Sampling(), 0)


def make(folder: Path, questions: int, answers: int, tokens: int) -> None:
    """Writes the questions, and segments with all their answers."""
    import numpy as np
    import pyarrow as pa

    from stages.corpora.rows import QUESTION_SCHEMA as QUESTIONS
    from stages.responses.key import derive_answer_key
    from stages.responses.segment_rows import ANSWER_SCHEMA, write_segment
    from stages.responses.segments import publish

    who = asked()
    random = np.random.default_rng(0)
    words = " ".join(["so", "the", "sum", "of", "these", "digits", "is", "then"] * (tokens // 8 + 1))
    step = max(1, min(SEGMENT_ANSWERS // answers, 20_000))
    (folder / "questions/imitation").mkdir(parents=True)
    for start in range(0, questions, step):
        numbers = range(start, min(start + step, questions))
        messages = [
            [{"role": "user", "content": f"What is the sum of {number} and {number + 1}?"}] for number in numbers
        ]
        rows = [
            {
                "id": f"q{number}",
                "images": [],
                "messages": said,
                "answer": "1",
                "source": "",
                "kind": "",
                "image_sha256": [],
            }
            for number, said in zip(numbers, messages, strict=True)
        ]
        import pyarrow.parquet as pq

        pq.write_table(
            pa.Table.from_pylist(rows, schema=QUESTIONS), folder / f"questions/imitation/part-{start:09d}.parquet"
        )
        requests = [who.request_key(said, []) for said in messages]
        count = len(requests) * answers
        lengths = random.integers(tokens // 2, tokens + 1, count)
        flat = pa.array(random.integers(0, 5000, int(lengths.sum()), dtype=np.int32))
        columns = {
            "key": [derive_answer_key(request, sample) for request in requests for sample in range(answers)],
            "request_key": [request for request in requests for _ in range(answers)],
            "sample": list(range(answers)) * len(requests),
            "question_id": [f"q{number}" for number in numbers for _ in range(answers)],
            "text": [f"{place}: {words[: 4 * length]}" for place, length in enumerate(lengths)],
            "token_ids": pa.ListArray.from_arrays(
                pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)), flat
            ),
            "finish_reason": ["stop"] * count,
            "prompt_tokens": [20] * count,
            "completion_tokens": lengths.astype(np.int32),
            "engine": ["vllm"] * count,
            "engine_version": ["0"] * count,
            "created_at": [1] * count,
            "model": ["model"] * count,
            "revision": ["0123"] * count,
            "seconds": np.full(count, 0.01, np.float32),
            "request": [None] * count,
        }
        table = pa.table(
            {name: pa.array(values, ANSWER_SCHEMA.field(name).type) for name, values in columns.items()},
            schema=ANSWER_SCHEMA,
        )
        publish(folder / "set", lambda path, table=table: write_segment(path, table))  # type: ignore[misc]


def project(folder: Path, answers: int, profile: bool) -> None:
    """Projects everything, and prints what it took. Exit code 1 when a bound is broken."""
    import stages.teacher  # noqa: F401 - all that the stage's own process imports before it starts an engine
    from stages.config.answers import AnswerBounds
    from stages.corpora.rows import QuestionFolder
    from stages.responses.projection import write_projection
    from stages.responses.requested import RequestedAnswers
    from stages.responses.store import Store
    from stages.responses.variety import AnswerVariety

    def measured(title: str, begin: tuple[float, float]) -> tuple[float, float]:
        now = time.perf_counter(), time.process_time()
        print(
            f"  {title}: {now[0] - begin[0]:.1f} s, CPU {now[1] - begin[1]:.1f} s, peak {peak() / GIB:.2f} GiB",
            flush=True,
        )
        return now

    start = clock = time.perf_counter(), time.process_time()
    profiler = None
    if profile:
        import cProfile

        profiler = cProfile.Profile()
        profiler.enable()
    questions = QuestionFolder(folder / "questions", "imitation")
    wanted = RequestedAnswers.from_prompts(asked(), questions.iter_key_parts(), answers)
    clock = measured("keys of the questions", clock)
    store = Store(folder / "set", print)
    clock = measured("index", clock)
    stored = wanted.find_stored(store)
    assert stored.all(), "an answer is missing"
    clock = measured("looking up", clock)
    (folder / "out").mkdir()
    variety = AnswerVariety("scale", AnswerBounds(max_empty_share=1.0, max_same_share=1.0), print)
    counts = write_projection(folder / "out", store, wanted, variety)
    measured("writing the projection", clock)
    if profiler:
        import pstats

        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    each = store.index.nbytes / counts.answers
    rates = f"{counts.answers / wall:.0f} answers/s by the clock, {counts.answers / cpu:.0f} by CPU time"
    print(
        f"{len(wanted)} questions x {answers}: {rates}; index {each:.1f} bytes an answer; largest resident memory "
        f"{peak() / GIB:.2f} GiB",
        flush=True,
    )
    sys.exit(peak() > GIB or each > 64)


def peak() -> int:
    """Largest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Makes the store in one process, projects it in another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=1_000_000)
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=os.environ.get("RIL_SCALE_FOLDER")) as name:
        begin = time.perf_counter()
        maker = context.Process(target=make, args=(Path(name), options.questions, options.answers, options.tokens))
        maker.start()
        maker.join()
        if maker.exitcode:
            return 1
        print(f"made in {time.perf_counter() - begin:.0f} s", flush=True)
        reader = context.Process(target=project, args=(Path(name), options.answers, options.profile))
        reader.start()
        reader.join()
        return int(reader.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main())
