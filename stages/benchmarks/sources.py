"""Finds, checks and reads the files of a benchmark; never changes them."""

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from stages.benchmarks.sample import BenchmarkError, LazyImage, MissingBenchmark, Sample
from stages.benchmarks.spec import Hub, Spec, Tsv, check_sample
from stages.benchmarks.tables import TableRow, check_head, read_folder, read_revision, read_tsv
from stages.config.regular import explain_os_error
from stages.job.bounded import show_path
from stages.job.hashes import hash_md5
from stages.job.hub import DOWNLOADS, HubError, allows_downloads, download_snapshot

SERVER = "https://opencompass.openxlab.space/utils"
TOLERATED_ROWS = 2  # allowed difference between data card and file (SEED-Bench: 14,232 or 14,233)


@dataclass(frozen=True)
class LoadedBenchmark:
    """A benchmark's samples and their source."""

    spec: Spec
    samples: tuple[Sample, ...]
    source: str  # file with its md5, or folder with its revision; shown with every score
    notes: tuple[str, ...]  # remarks for readers of the score


def load_benchmark(spec: Spec, folder: Path, strict_md5: bool = False) -> LoadedBenchmark:
    """Returns the samples of one benchmark from `folder`.

    Searches in this order: the TSV files of VLMEvalKit; a folder named after the benchmark or its data set (parquet or
    `save_to_disk`); the hub, if downloads are allowed. Raises BenchmarkError that names file, row and column.
    """
    try:
        return _load_samples(spec, folder, strict_md5)
    except OSError as error:
        where = show_path(Path(error.filename or folder))
        raise BenchmarkError(f"{spec.title}: {where}: {explain_os_error(error)}; fetch the file again") from None


def has_files(spec: Spec, folder: Path) -> bool:
    """Whether `folder` holds a file or a folder of the benchmark."""
    names = [name.split("/")[-1] for hub in spec.hub for name in (spec.id, *hub.names)]
    return any((folder / f"{tsv.name}.tsv").is_file() for tsv in spec.tsv) or any(
        (folder / name).is_dir() for name in names
    )


def _load_samples(spec: Spec, folder: Path, strict_md5: bool) -> LoadedBenchmark:
    for tsv in spec.tsv:
        path = folder / f"{tsv.name}.tsv"
        if path.is_file():
            check_head(path)  # before gigabytes are hashed
            md5 = hash_md5(path)
            source, notes = _check_md5(path, tsv, md5, strict_md5)
            return _check_samples(spec, read_tsv(path, spec.needs["tsv"]), "tsv", source, notes)
    for hub in spec.hub:
        for name in (spec.id, *(name.split("/")[-1] for name in hub.names)):
            if (folder / name).is_dir():
                return _load_folder(spec, hub, folder / name)
        if allows_downloads():
            return _load_folder(spec, hub, download_dataset(hub))
    raise MissingBenchmark(f"{spec.title}: nothing in {folder}; {describe_remedy(spec)}")


def describe_remedy(spec: Spec) -> str:
    """Describes which files to provide for a missing benchmark."""
    if spec.world:
        return "the stage evaluate writes it from the tiny world while it runs; its rows are in data/evaluate/<model>"
    files = [f"{tsv.name}.tsv from {SERVER}/{tsv.folder}/{tsv.name}.tsv" for tsv in spec.tsv if tsv.md5s]
    sets = [f"the data set {hub.names[0]} as folder {spec.id}" for hub in spec.hub]
    return f"put there {' or '.join([*files[:1], *sets])}, or set {DOWNLOADS}=1"


def download_dataset(hub: Hub) -> Path:
    """Returns the folder of a data set from the hub, at its revision; uses the first available name."""
    failed = []
    for name in hub.names:
        try:
            patterns = [f"*{hub.config}*/*.parquet" if hub.config else "*.parquet"]
            return download_snapshot(name, kind="dataset", revision=hub.revision, patterns=patterns)
        except HubError as error:
            failed.append(str(error))
    raise BenchmarkError("; ".join(failed))


def _check_md5(path: Path, tsv: Tsv, md5: str, strict: bool) -> tuple[str, list[str]]:
    if md5 in tsv.md5s:
        label = f", {tsv.md5s[md5]}" if tsv.md5s[md5] else ""
        return f"{path.name} (md5 {md5}{label})", []
    if not tsv.md5s:
        return f"{path.name} (md5 {md5}, none is published)", []
    known = ", ".join(f"{one} {label}".strip() for one, label in tsv.md5s.items())
    message = (
        f"{path}: md5 is {md5}, known is {known}; it is another file than the published one, and was left as it is"
    )
    if strict:
        raise BenchmarkError(f"{message}; fetch it again, or set evaluate.strict_md5: false")
    return f"{path.name} (md5 {md5}, unknown)", [message]


def _load_folder(spec: Spec, hub: Hub, path: Path) -> LoadedBenchmark:
    revision = read_revision(path)
    source = f"{path.name}{f' at {revision}' if revision else ''}"
    return _check_samples(spec, read_folder(path, hub.split, spec.needs["hub"], hub.config), "hub", source, [])


def _check_samples(spec: Spec, rows: Iterable[TableRow], kind: str, source: str, notes: list[str]) -> LoadedBenchmark:
    """Returns the samples after checking that indices are unique and questions complete."""
    seen: dict[str, str] = {}
    samples = []
    for row in rows:
        sample = _make_sample(spec, row, kind)
        if sample is None:
            continue
        if sample.index in seen:
            raise BenchmarkError(
                f"{row.where}, column 'index': {sample.index!r} is also in {seen[sample.index]}; drop one"
            )
        seen[sample.index] = row.where
        samples.append(sample)
    if not samples:
        raise BenchmarkError(f"{spec.title}: {source} has no row that can be scored")
    if spec.circular:
        _check_rotations(spec, samples)
    odd = [sample.index for sample in samples if sample.options and not _has_gold(spec, sample)]
    if odd:
        notes.append(f"{len(odd)} rows whose answer is none of their options can't be right, the first: {odd[0]}")
    if abs(len(samples) - spec.expected) > TOLERATED_ROWS and not spec.world:
        notes.append(f"{len(samples)} rows, published are {spec.expected}")
    return LoadedBenchmark(spec, tuple(samples), source, tuple(notes))


def _make_sample(spec: Spec, row: TableRow, kind: str) -> Sample | None:
    try:
        sample = spec.make["tsv" if kind == "tsv" else "hub"](row)
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        if isinstance(error, BenchmarkError):
            raise
        what = f"{type(error).__name__}: {error!s:.200}"
        raise BenchmarkError(f"{row.where}: is not a row of {spec.title} ({what}); correct or drop it") from error
    if sample is not None:
        check_sample(spec, sample, row.where)
    return sample


def _has_gold(spec: Spec, sample: Sample) -> bool:
    return sample.gold in sample.options or sample.gold in sample.options.values()


def _check_rotations(spec: Spec, samples: Sequence[Sample]) -> None:
    """Raises BenchmarkError for a question without all rotations: it would be easier than the others."""
    rotations = Counter(sample.extra["question"] for sample in samples)
    for sample in samples:
        question = sample.extra["question"]
        if rotations[question] != len(sample.options):
            raise BenchmarkError(
                f"{spec.title}: question {question} has {rotations[question]} rows and {len(sample.options)} options; "
                f"every rotation is required"
            )


def check_pictures(samples: Iterable[Sample]) -> None:
    """Opens every picture. Raises BenchmarkError with file, row and column for one that is not an image."""
    for sample in samples:
        for picture in sample.pictures:
            check_picture(picture)


def check_picture(picture: LazyImage) -> None:
    """Raises BenchmarkError if the bytes are not an image that can be decoded."""
    try:
        with Image.open(io.BytesIO(picture.data)) as image:
            image.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, BenchmarkError):
            raise
        reason = " ".join(str(error).split())[:120]
        raise BenchmarkError(f"{picture.where}: is not a readable image ({reason}); fetch the file again") from None
