"""`ril rewards`: tries a reward function on stored answers before it trains anybody."""

import heapq
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from flows.cli.score import format_table, show_text
from flows.jobs import open_job
from stages.config.own_rewards import OF_PAPER, RUBRIC, Reward, explain_missing_function
from stages.config.params import load_params
from stages.corpora.rows import IMITATION_SPLITS, Question, find_questions
from stages.engines.engine import StartOptions
from stages.groups.response import Response
from stages.job.failure import Failure
from stages.job.job import MissingInput
from stages.job.progress import Progress
from stages.job.seeds import derive_seed
from stages.job.shards import Shards
from stages.reward_functions.functions import Calls, RewardFunctions
from stages.reward_functions.process import CallOutcome
from stages.reward_functions.ready import FUNCTIONS

MOST_BARS, WIDTH = 10, 40  # rows of the histogram, and characters of its longest bar
EXAMPLES = 5
SHOWN = 100  # characters of a text
_COLUMNS = ["question_id", "sample", "response", "finish_reason"]

rewards_app = typer.Typer(help="Try reward functions on stored answers (docs/rewards.md).", no_args_is_help=True)


class RewardError(ValueError):
    """A function or answers that are not there; the message says what to do."""


@dataclass(frozen=True)
class Tried:
    """One stored answer and the value of the function; None: failed."""

    source: str
    question: Question
    answer: str
    value: float | None


@rewards_app.command("list")
def list_ready() -> None:
    """Lists the ready functions, with what each returns."""
    rows = [{"use": name, "value": (one.__doc__ or "").split("\n\n")[0]} for name, one in FUNCTIONS.items()]
    print(format_table([{**row, "value": " ".join(row["value"].split())} for row in rows]))


@rewards_app.command("try")
def try_reward(
    use: Annotated[
        str, typer.Argument(help="FILE.py:FUNCTION, FILE.py (its function check), a ready function, or `rubric`.")
    ],
    answers: Annotated[
        list[Path] | None,
        typer.Option("--answers", help="Folder of answers, several times; default: data/rollout, data/teacher/*."),
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="How many answers, drawn by seed.")] = 200,
    argument: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of `arguments`, several times.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time limit of one call.")] = 10.0,
    rubric: Annotated[
        str | None, typer.Option(help="For `rubric`: what an answer has to meet; the judge of params.yaml is asked.")
    ] = None,
) -> None:
    """Runs a reward function on stored answers and prints its values, failures and examples.

    For `rubric` the judge is started and asked; its verdicts are stored. The exit code is 1 when more calls fail than a
    run allows (max_failed_share).
    """
    root = Path.cwd()
    reward = _make_reward(use, argument or [], seconds, rubric)
    if line := explain_missing_function(root, reward):
        raise RewardError(line)
    folders = answers or [
        path for path in (Path("data/rollout"), *sorted(Path("data/teacher").glob("*"))) if path.is_dir()
    ]
    drawn, total = draw_answers(folders, sample)
    named = find_questions(root / "data" / "questions", IMITATION_SPLITS, {row["question_id"] for _, row in drawn})
    pairs = [(source, named[row["question_id"]], row) for source, row in drawn if row["question_id"] in named]
    if not pairs:
        raise RewardError(
            f"none of the answers' questions is in {root / 'data' / 'questions'}; run: dvc repro questions"
        )
    begun = time.monotonic()
    tried, calls = (grade_by_rubric if reward.use == RUBRIC else compute_values)(reward, pairs, root)
    took = time.monotonic() - begun
    print(f"{reward.use}: {len(tried)} of {total} stored answers in {took:.1f} s ({', '.join(map(str, folders))})")
    print(format_result(tried, calls))
    if calls.failed.total() > reward.max_failed_share * calls.count:
        raise typer.Exit(1)


def _make_reward(use: str, arguments: Sequence[str], seconds: float, rubric: str | None) -> Reward:
    """Returns the entry of `ril.rewards` with every failure allowed to be counted; raises RewardError."""
    if use in OF_PAPER:
        raise RewardError(f"{use!r} is no function; curves of it are in reports/ril/history.csv")
    given: dict[str, Any] = {}
    for one in arguments:
        name, equals, value = one.partition("=")
        if not equals:
            raise RewardError(f"--set {one}: write NAME=VALUE")
        given[name] = yaml.safe_load(value)
    of_kind = {"rubric": rubric} if use == RUBRIC else {"arguments": given, "seconds": seconds}
    if rubric is not None and use != RUBRIC:
        raise RewardError(f"--rubric is for `rubric`, not for {use!r}")
    try:
        return Reward(use=use, **of_kind)
    except ValidationError as error:
        raise RewardError("; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())) from error


def draw_answers(folders: Sequence[Path], most: int) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """Returns at most `most` answers with the name of their folder, and how many there are; raises RewardError."""
    kept: list[tuple[int, int, str, dict[str, Any]]] = []
    total = 0
    for folder in folders:
        if not any(folder.glob("*.parquet")):
            raise RewardError(f"{folder}: no stored answers here; run: dvc repro rollout")
        for table in Shards(folder).iter_tables(_COLUMNS):
            for row in table.to_pylist():
                heapq.heappush(kept, (-derive_seed(0, "rewards", total), total, folder.name, row))
                total += 1
                if len(kept) > most:
                    heapq.heappop(kept)
    if not kept:
        raise RewardError("no stored answers; run: dvc repro rollout, or name a folder with --answers")
    return [(source, row) for _, _, source, row in sorted(kept, key=lambda one: one[1])], total


def compute_values(
    reward: Reward, pairs: Sequence[tuple[str, Question, dict[str, Any]]], root: Path
) -> tuple[list[Tried], Calls]:
    """Returns the value of each answer, and what became of the calls; raises RewardError if nothing can be called."""
    try:
        functions = RewardFunctions([reward.model_copy(update={"max_failed_share": 1.0})], root, "", None)
    except Failure as error:
        raise RewardError(str(error)) from error
    try:
        for number, (source, question, row) in enumerate(pairs):
            functions.put(number, question, [Response(source, row["response"], (), row["finish_reason"], None)])
        values, (calls,) = functions.collect("ril rewards try", lambda _: None, Progress().track)
    finally:
        functions.close()
    return [
        Tried(source, question, row["response"], values[number, 0][0])
        for number, (source, question, row) in enumerate(pairs)
    ], calls


def grade_by_rubric(
    reward: Reward, pairs: Sequence[tuple[str, Question, dict[str, Any]]], root: Path
) -> tuple[list[Tried], Calls]:
    """Returns the judge's verdict by the rubric on each answer, and how many it did not give.

    Raises ParamsError, and RewardError when the judge's model is not there.
    """
    from stages.engines.start import start_engine  # local imports: torch
    from stages.judging.rubric import RubricJudge
    from stages.vlm.checkpoint import open_verified

    params = load_params(root / "params.yaml")
    job = open_job("ril", None, root, params)
    try:
        checkpoint = open_verified(job.input(f"data/model/{params.verdict.model}"), job.store)
    except MissingInput as error:
        raise RewardError(str(error)) from error
    options = StartOptions(job.store / "logs", say=job.progress.say, stage=job.stage, spending=job.spending)
    judge = start_engine(checkpoint, params.runtime, options)
    calls = Calls()
    try:
        asked = RubricJudge(job, judge, reward.model_copy(update={"max_failed_share": 1.0}))
        for number, (source, question, row) in enumerate(pairs):
            asked.put(number, question, [Response(source, row["response"], (), row["finish_reason"], None)])
        values = asked.collect("ril rewards try")
    finally:
        judge.close()
    for number, (_, question, _row) in enumerate(pairs):
        calls.add(question.id, CallOutcome(values[number, 0], "no verdict" if values[number, 0] is None else None))
    return [
        Tried(source, question, row["response"], values[number, 0])
        for number, (source, question, row) in enumerate(pairs)
    ], calls


def format_result(tried: Sequence[Tried], calls: Calls) -> str:
    """Returns counts, the distribution, means by source, failures and examples as text."""
    known = [one.value for one in tried if one.value is not None]
    failed = calls.failed.total()
    lines = [f"values {len(known)}, failed {failed} ({failed / max(calls.count, 1):.1%}), printed {calls.printed}"]
    lines += [
        f"  failed: {count} {show_text(reason)}, such as on question {calls.examples[reason]}"
        for reason, count in calls.failed.most_common()
    ]
    lines += [f"  printed, such as: {show_text(calls.print_example)}"] if calls.printed else []
    if known:
        lines += [f"mean {statistics.fmean(known):.4g}, standard deviation {statistics.pstdev(known):.4g}"]
        lines += ["  warning: all values are equal, so it would train nobody"] if len(set(known)) == 1 else []
        lines += ["", *format_histogram(known), "", *_format_sources(tried)]
    return "\n".join([*lines, "", *_format_examples(tried)])


def format_histogram(values: Sequence[float]) -> list[str]:
    """Returns one line a value if there are few values, else one for each of MOST_BARS equal intervals."""
    counts = Counter(values)
    if len(counts) <= MOST_BARS:
        bars = [(f"{value:.4g}", counts[value]) for value in sorted(counts)]
    else:
        low, high = min(values), max(values)
        step = (high - low) / MOST_BARS
        places = Counter(min(int((value - low) / step), MOST_BARS - 1) for value in values)
        bars = [(f"{low + step * one:.4g} to {low + step * (one + 1):.4g}", places[one]) for one in range(MOST_BARS)]
    longest, label = max(count for _, count in bars), max(len(name) for name, _ in bars)
    return [f"  {name.rjust(label)}  {'#' * round(WIDTH * count / longest)} {count}" for name, count in bars]


def _format_sources(tried: Sequence[Tried]) -> list[str]:
    rows = []
    for source in dict.fromkeys(one.source for one in tried):
        values = [one.value for one in tried if one.source == source]
        known = [value for value in values if value is not None]
        mean = f"{statistics.fmean(known):.4g}" if known else "–"
        rows.append(
            {"answers of": source, "n": str(len(values)), "mean": mean, "failed": str(len(values) - len(known))}
        )
    return format_table(rows).splitlines()


def _format_examples(tried: Sequence[Tried]) -> list[str]:
    """Returns EXAMPLES answers: one that failed, if any did, and others from the lowest to the highest value."""
    failed = [one for one in tried if one.value is None][:1]
    ordered = sorted((one for one in tried if one.value is not None), key=lambda one: one.value or 0.0)
    count = min(EXAMPLES - len(failed), len(ordered))
    places = [round(place * (len(ordered) - 1) / max(count - 1, 1)) for place in range(count)]
    rows = [
        {
            "value": "failed" if one.value is None else f"{one.value:.4g}",
            "question": one.question.id,
            "reference": " ".join(one.question.answer.split())[:SHOWN],
            "answer": " ".join(one.answer.split())[:SHOWN],
        }
        for one in [*(ordered[place] for place in places), *failed]
    ]
    return format_table(rows).splitlines()
