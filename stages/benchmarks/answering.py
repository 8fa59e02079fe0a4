"""From benchmark files to records: load, ask, let a judge speak, and leave nothing out silently.

The models are asked by functions that the caller gives; a benchmark that can't be read is named and left out, the others go on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stages.benchmarks.judging import AskJudge, JudgeReply, ask_judge, wants_judge
from stages.benchmarks.marks import Reply, outcome_of
from stages.benchmarks.prompts import Asked, step_by_step
from stages.benchmarks.records import Record
from stages.benchmarks.registry import find
from stages.benchmarks.sample import BenchmarkError, Sample
from stages.benchmarks.scorers import Profile
from stages.benchmarks.sources import Loaded, check_pictures, load
from stages.job.blocks import Evaluate


@dataclass(frozen=True)
class Plan:
    """What is asked: the benchmarks that could be read with their prompts, and why the others could not."""

    loaded: Mapping[str, Loaded]
    prompts: Mapping[str, Sequence[Asked]]
    errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def every(self) -> list[Asked]:
        """The prompts of all benchmarks, one after the other: one batch."""
        return [prompt for prompts in self.prompts.values() for prompt in prompts]


def planned(block: Evaluate, folder: Path, world: Path, say: Callable[[str], None]) -> Plan:
    """Reads the benchmarks of `block` and writes their prompts; what can't be read is said and kept as an error.

    Those of the tiny world are in `world`, all others in `folder`.
    """
    loaded, prompts, errors = {}, {}, {}
    for name in block.benchmarks:
        try:
            spec = find(name)
            found = load(spec, world if spec.world else folder, block.strict_md5)
            check_pictures(found.samples)
            prompts[name] = [asked_of(block, found, sample) for sample in found.samples]
            loaded[name] = found
        except BenchmarkError as error:
            errors[name] = str(error)
            say(f"benchmark {name} is left out: {error}")
            continue
        for note in found.notes:
            say(f"{found.spec.title}: {note}")
    return Plan(loaded, prompts, errors)


def asked_of(block: Evaluate, found: Loaded, sample: Sample) -> Asked:
    """The prompt of one sample in the configured style."""
    parts = found.spec.prompts[block.style](sample)
    return Asked(f"{found.spec.id}/{sample.index}", tuple(step_by_step(parts, sample) if block.cot == "on" else parts))


def records(
    plan: Plan, block: Evaluate, replies: Sequence[Reply | None], manifest: Mapping[str, Any], ask: AskJudge
) -> dict[str, Record]:
    """One record a benchmark, with what a judge said where one is needed; `replies` are in the order of `plan.every`.

    All benchmarks' questions to the judge go out as one batch for each length of answer.
    """
    rest = iter(replies)
    found: dict[str, Record] = {}
    for name, loaded in plan.loaded.items():
        given = [(sample, prompt, next(rest)) for sample, prompt in zip(loaded.samples, plan.prompts[name], strict=True)]
        said = {
            sample.index: replace(reply, index=sample.index, prompt=prompt.sha256) for sample, prompt, reply in given if reply
        }
        judge = judged_by(loaded, said, block.profiles[0], block.cot == "on", ask)
        about = {**manifest, "source": loaded.source, "notes": list(loaded.notes), "style": block.style, "cot": block.cot}
        about["judge"] = manifest["judge"] if judge else None
        found[name] = Record(name, about, [replace(sample, pictures=()) for sample in loaded.samples], said, judge)
    return found


def judged_by(loaded: Loaded, replies: Mapping[str, Reply], profile: Profile, cot: bool, ask: AskJudge) -> dict[str, JudgeReply]:
    """What the judge says about the rows that the first profile's rules leave open."""
    spec = loaded.spec
    if spec.judge == "none":
        return {}
    open_rows = []
    for sample in loaded.samples:
        reply = replies.get(sample.index)
        if reply is not None and wants_judge(spec, sample, reply.text, outcome_of(spec, sample, reply, profile, cot, {})):
            open_rows.append((sample, reply.text))
    return ask_judge(spec, open_rows, ask, {})
