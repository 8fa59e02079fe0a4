"""Checks whether images of a benchmark are in the training data: the same bytes, by hash.

Equal bytes are a lower bound: a rescaled or re-encoded picture is not found.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.benchmarks.sample import BenchmarkError, Sample

_HASHES = pa.schema([("id", pa.string()), ("image_sha256", pa.list_(pa.string()))])


@dataclass(frozen=True)
class Overlap:
    """The images that a benchmark shares with one split of the training data."""

    benchmark: str
    split: str
    samples: int  # of the benchmark
    shared: int  # samples with a picture that is in the split
    examples: tuple[str, ...]  # pairs "benchmark row = training row", the first few


def hash_training_images(split: Path) -> dict[str, str]:
    """Returns the id of a question by image hash, from canonical parquet shards; does not read image bytes."""
    found: dict[str, str] = {}
    for file in sorted(split.glob("*.parquet")):
        try:
            table = pq.read_table(file, columns=["id", "image_sha256"]).cast(_HASHES)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BenchmarkError(f"{file}: can't be read ({reason}); run: dvc repro questions") from None
        for name, hashes in zip(table["id"].to_pylist(), table["image_sha256"].to_pylist(), strict=True):
            found.update(dict.fromkeys(hashes or (), name))
    return found


def find_overlap(
    benchmark: str, samples: Iterable[Sample], split: str, trained: Mapping[str, str], examples: int = 5
) -> Overlap:
    """Counts the samples with a picture that is in the training data."""
    count, shared = 0, []
    for sample in samples:
        count += 1
        hit = next((trained[picture.sha256] for picture in sample.pictures if picture.sha256 in trained), None)
        if hit is not None:
            shared.append(f"{sample.index} = {hit}")
    return Overlap(benchmark, split, count, len(shared), tuple(shared[:examples]))
