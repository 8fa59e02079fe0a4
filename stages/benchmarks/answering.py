"""From benchmark files to records: load benchmarks, generate answers, get judge replies. Nothing is dropped silently.

The caller provides the functions that run the models. A benchmark that cannot be read is reported and skipped; the
others continue.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stages.benchmarks.predictions import BenchmarkRecord
from stages.benchmarks.prompts import BenchmarkPrompt, ask_step_by_step
from stages.benchmarks.registry import find_benchmark
from stages.benchmarks.sample import BenchmarkError, Sample
from stages.benchmarks.scorers import Profile
from stages.benchmarks.scores import BenchmarkReply, score_row
from stages.benchmarks.sources import LoadedBenchmark, check_pictures, load_benchmark
from stages.benchmarks.spec import Spec
from stages.benchmarks.verdicts import AskJudge, ask_judge, wants_judge
from stages.config.evaluate import Evaluate


@dataclass(frozen=True)
class BenchmarkPlan:
    """The prompts of the benchmarks that could be read, and why the others could not."""

    loaded: Mapping[str, LoadedBenchmark]
    prompts: Mapping[str, Sequence[BenchmarkPrompt]]
    errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_prompts(self) -> list[BenchmarkPrompt]:
        """The prompts of all benchmarks in sequence: one batch."""
        return [prompt for prompts in self.prompts.values() for prompt in prompts]


def plan_benchmarks(block: Evaluate, folder: Path, world: Path, say: Callable[[str], None]) -> BenchmarkPlan:
    """Reads the benchmarks of `block` and builds their prompts; read errors are reported and kept.

    Benchmarks of the tiny world are in `world`, all others in `folder`.
    """
    loaded, prompts, errors = {}, {}, {}
    for name in block.benchmarks:
        try:
            spec = find_benchmark(name)
            found = load_benchmark(spec, world if spec.world else folder, block.strict_md5)
            check_pictures(found.samples)
            prompts[name] = [make_benchmark_prompt(block, found, sample) for sample in found.samples]
            loaded[name] = found
        except BenchmarkError as error:
            errors[name] = str(error)
            say(f"benchmark {name} is skipped: {error}")
            continue
        for note in found.notes:
            say(f"{found.spec.title}: {note}")
    return BenchmarkPlan(loaded, prompts, errors)


def make_benchmark_prompt(block: Evaluate, found: LoadedBenchmark, sample: Sample) -> BenchmarkPrompt:
    """Returns the prompt of one sample in the configured style."""
    parts = found.spec.prompts[block.style](sample)
    return BenchmarkPrompt(
        f"{found.spec.id}/{sample.index}", tuple(ask_step_by_step(parts, sample) if block.cot == "on" else parts)
    )


def make_records(
    plan: BenchmarkPlan,
    block: Evaluate,
    replies: Sequence[BenchmarkReply | None],
    manifest: Mapping[str, Any],
    ask: AskJudge,
) -> dict[str, BenchmarkRecord]:
    """Returns one record per benchmark, with the judge's replies where needed; `replies` are in prompt order.

    The judge's prompts of all benchmarks form one batch per sampling.
    """
    rest = iter(replies)
    said: dict[str, dict[str, BenchmarkReply]] = {}
    open_rows: list[tuple[Spec, Sample, str]] = []
    for name, loaded in plan.loaded.items():
        given = [
            (sample, prompt, next(rest)) for sample, prompt in zip(loaded.samples, plan.prompts[name], strict=True)
        ]
        said[name] = {
            one.index: replace(reply, index=one.index, prompt=prompt.sha256) for one, prompt, reply in given if reply
        }
        open_rows += select_for_judge(loaded, said[name], block.profiles[0], block.cot == "on")
    words = ask_judge(open_rows, ask, block.judge_form)
    found: dict[str, BenchmarkRecord] = {}
    for name, loaded in plan.loaded.items():
        judge = {index: reply for (benchmark, index), reply in words.items() if benchmark == name}
        about = {
            **manifest,
            "source": loaded.source,
            "notes": list(loaded.notes),
            "style": block.style,
            "cot": block.cot,
        }
        about["judge"] = manifest["judge"] if judge else None
        found[name] = BenchmarkRecord(
            name, about, [replace(sample, pictures=()) for sample in loaded.samples], said[name], judge
        )
    return found


def select_for_judge(
    loaded: LoadedBenchmark, replies: Mapping[str, BenchmarkReply], profile: Profile, cot: bool
) -> list[tuple[Spec, Sample, str]]:
    """Returns the rows that the rules of the first profile leave open and that a judge could decide."""
    spec = loaded.spec
    if spec.judge == "none":
        return []
    open_rows = []
    for sample in loaded.samples:
        reply = replies.get(sample.index)
        if reply is not None and wants_judge(
            spec, sample, reply.text, score_row(spec, sample, reply, profile, cot, {})
        ):
            open_rows.append((spec, sample, reply.text))
    return open_rows
