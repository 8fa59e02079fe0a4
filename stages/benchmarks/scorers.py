"""Scorers apply the rules of a profile to a sample and a reply. Specs refer to these functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from stages.benchmarks.rules import lmms, open_answers, ours, vlmeval
from stages.benchmarks.sample import Outcome, Sample
from stages.corpora.final_answers import unwrap_answer
from stages.corpora.numbers import read_last_number

Profile = Literal["ours", "vlmeval@0.0.20", "lmms@0.7.3"]
OURS: Profile = "ours"
VLMEVAL: Profile = "vlmeval@0.0.20"
LMMS: Profile = "lmms@0.7.3"
PROFILES: tuple[Profile, ...] = (OURS, VLMEVAL, LMMS)
Scorer = Callable[[Sample, str], Outcome]


# --- multiple choice ------------------------------------------------------------------------------------------------


def score_ours_choice(sample: Sample, reply: str) -> Outcome:
    """Scores by our letter rule; open rows of a mixed benchmark by `score_ours_open`."""
    if not sample.options:
        return score_ours_open(sample, reply)
    found, rule = ours.read_choice(reply, sample.options)
    return Outcome.from_extraction(found, found == sample.gold, rule)


def score_ours_open(sample: Sample, reply: str) -> Outcome:
    """Scores by MMMU's open rule on the reply without reasoning; any of several references may match."""
    text = unwrap_answer(reply)
    golds = vlmeval.list_alternatives(sample.gold)
    return Outcome.from_extraction(text or None, bool(text) and open_answers.is_open_answer_right(text, golds), "open")


def score_vlmeval_choice(sample: Sample, reply: str) -> Outcome:
    """Scores by a letter or an option's text (M3); options that pandas reads as missing are ignored."""
    found = vlmeval.match_choice(reply, vlmeval.list_seen_options(sample.options))
    return Outcome.from_extraction(found, found == sample.gold, "M3")


def score_vlmeval_mmmu(sample: Sample, reply: str) -> Outcome:
    """Like `score_vlmeval_choice`; an open question becomes a choice between reference and "Other Answers"."""
    options = vlmeval.list_seen_options(sample.options)
    gold = sample.gold if len(sample.gold) == 1 and sample.gold.isascii() and sample.gold.isupper() else "A"
    if "A" not in options:
        options = {**options, "A": sample.gold, "B": "Other Answers"}
    found = vlmeval.match_choice(reply, dict(sorted(options.items())))
    return Outcome.from_extraction(found, found == gold, "M3")


def score_vlmeval_cot(sample: Sample, reply: str) -> Outcome:
    """Scores MMMU-Pro's `_COT` sets: the line "Answer: ...", then as `score_vlmeval_choice`."""
    return score_vlmeval_choice(sample, vlmeval.read_answer_line(reply))


def score_lmms_any_letter(sample: Sample, reply: str) -> Outcome:
    """Scores by the most confident of the letters A to D (M4)."""
    found = lmms.find_any_letter(reply, "ABCD") or None
    return Outcome.from_extraction(found, found == sample.gold.strip().upper(), "M4")


def score_lmms_mmmu(sample: Sample, reply: str) -> Outcome:
    """Scores by a letter (M5) or the open rule; a list of references stays one text, so such rows never match."""
    if not sample.options:
        return Outcome.from_extraction(reply, open_answers.is_open_answer_right(reply, [sample.gold]), "M10")
    found = lmms.find_mmmu_letter(reply, sample.options)
    return Outcome.from_extraction(found, found == sample.gold, "M5")


def score_same_text(sample: Sample, reply: str) -> Outcome:
    """Scores whether the reply equals the reference exactly (MMMU-Pro vision in lmms-eval)."""
    return Outcome.from_extraction(reply, reply == sample.gold, "same text")


def score_lmms_blink(sample: Sample, reply: str) -> Outcome:
    """Scores by BLINK's letter (M7)."""
    found = lmms.find_blink_letter(reply, "".join(sample.options)) if sample.options else ""
    return Outcome.from_extraction(found or None, found == sample.gold, "M7")


def score_lmms_ai2d(sample: Sample, reply: str) -> Outcome:
    """Scores by AI2D's text equality (M8); every reply counts as parsed, because any text is compared."""
    text = lmms.normalise_ai2d(reply)
    return Outcome.from_extraction(text, text == sample.gold.lower(), "M8")


def score_lmms_first_character(sample: Sample, reply: str) -> Outcome:
    """Scores by the first character of the reply (M6)."""
    found = lmms.read_first_character(reply)
    return Outcome.from_extraction(found or None, found.lower() == sample.gold.strip().lower(), "M6")


def score_lmms_mmbench(sample: Sample, reply: str) -> Outcome:
    """Scores one row of MMBench without a judge: the harness's letter or text, else M4; missing options are "nan"."""
    options = fill_options_with_nan(sample)
    found = lmms.find_mmbench_choice(reply, options) or lmms.find_any_letter(reply, sorted(options)) or None
    return Outcome.from_extraction(found, found == sample.gold, "static")


def fill_options_with_nan(sample: Sample) -> dict[str, str]:
    """Returns options A to D as in that harness: missing ones have the text "nan"."""
    return {letter: sample.options.get(letter, "nan") for letter in "ABCD"}


def score_lmms_realworldqa(sample: Sample, reply: str) -> Outcome:
    """Scores a letter by M4, any other reference as text."""
    return Outcome.from_extraction(reply, lmms.is_realworldqa_right(reply, sample.gold), "M4 or same text")


# --- ChartQA --------------------------------------------------------------------------------------------------------


def score_vlmeval_relaxed(sample: Sample, reply: str) -> Outcome:
    """Scores within 5 % or as text (M9); strips the reply and parses list references as that harness does."""
    return Outcome.from_extraction(reply, vlmeval.matches_any_relaxed(sample.gold, reply), "M9")


def score_lmms_relaxed(sample: Sample, reply: str) -> Outcome:
    """Scores the unchanged reply within 5 % or as text (M9)."""
    return Outcome.from_extraction(reply, vlmeval.matches_relaxed(sample.gold, reply), "M9")


def score_ours_relaxed(sample: Sample, reply: str) -> Outcome:
    """Scores by M9 on the reply without reasoning; a more lenient rule would not be comparable."""
    text = unwrap_answer(reply)
    return Outcome.from_extraction(text or None, vlmeval.matches_any_relaxed(sample.gold, text), "M9")


def score_clean_relaxed(sample: Sample, reply: str) -> Outcome:
    """Scores by M9 without final stop, quotes, `$` and thousands separators; never the main score."""
    text = ours.clean_chart_reply(reply)
    return Outcome.from_extraction(text or None, vlmeval.matches_any_relaxed(sample.gold, text), "M9 clean")


# --- MathVista ------------------------------------------------------------------------------------------------------


def score_vlmeval_mathvista(sample: Sample, reply: str) -> Outcome:
    """Scores what that harness decides without a judge; the rest is unparsed, for a judge to extract."""
    kind, answer, choices = _read_mathvista_fields(sample)
    found = vlmeval.prefetch_mathvista(kind, answer, choices, sample.gold, reply)
    right = found is not None and score_vlmeval_mathvista_extraction(sample, found).score == 1
    return Outcome.from_extraction(found, right, "prefetch")


def score_vlmeval_mathvista_extraction(sample: Sample, extraction: str) -> Outcome:
    """Scores a judge's extraction as that harness does."""
    kind, answer, choices = _read_mathvista_fields(sample)
    right = vlmeval.is_mathvista_right(
        kind, answer, choices, sample.gold, str(sample.extra["answer_option"]), extraction
    )
    return Outcome.from_extraction(extraction, right, "extraction")


def score_lmms_mathvista(sample: Sample, reply: str) -> Outcome:
    """Scores that harness's extraction without a judge; unparsed where it would use the nearest option."""
    kind, answer, choices = _read_mathvista_fields(sample)
    found = lmms.extract_mathvista_quickly(kind, answer, choices, reply)
    return Outcome("unparsed", rule="quick") if found is None else score_lmms_mathvista_extraction(sample, found)


def score_lmms_mathvista_extraction(sample: Sample, extraction: str) -> Outcome:
    """Scores a judge's extraction as that harness does (M11)."""
    kind, answer, choices = _read_mathvista_fields(sample)
    form = lmms.normalise_mathvista(kind, answer, choices, sample.extra["precision"], extraction)
    return Outcome.from_extraction(extraction, lmms.is_mathvista_equal(form, sample.gold), "extraction")


def score_ours_mathvista(sample: Sample, reply: str) -> Outcome:
    """Scores by our cascade: an option by our letter rule, a number from the marked final answer, a list as a literal.

    Numbers are rounded to the precision of the reference, as in the authors' rule; integers are not truncated to fit.
    """
    kind, answer, choices = _read_mathvista_fields(sample)
    if kind == "multi_choice":
        found, rule = ours.read_choice(reply, vlmeval.letter_choices(choices))
        return Outcome.from_extraction(found, found == sample.extra["answer_option"], rule)
    text, rule = ours.read_final_answer(reply)
    if answer == "list":
        values = ours.read_list(text)
        right = values is not None and values == ours.read_list(sample.gold)
        return Outcome.from_extraction(None if values is None else text, right, rule)
    if answer in ("integer", "float"):
        said, wanted = read_last_number(text), read_last_number(sample.gold)
        digits = int(sample.extra["precision"] or 0)
        right = said is not None and wanted is not None and round(said, digits) == round(wanted, digits)
        return Outcome.from_extraction(None if said is None else str(float(said)), right, rule)
    same = " ".join(text.casefold().split()) == " ".join(sample.gold.casefold().split())
    return Outcome.from_extraction(text or None, same, rule)


def _read_mathvista_fields(sample: Sample) -> tuple[str, str, Sequence[str]]:
    extra = sample.extra
    return str(extra["question_type"]), str(extra["answer_type"]), tuple(sample.options.values())


# --- circular evaluation (MMBench) ----------------------------------------------------------------------------------


def score_rotations(profile: Profile, rows: Sequence[tuple[Sample, str, Outcome]]) -> Outcome:
    """Returns one outcome for a question asked in all its rotations; correct only if every rotation is.

    An unparsed row makes it `unparsed` (score 0) unless another row is wrong. The same holds for a row whose judge
    failed or has not replied: the remaining state shows what is missing.
    """
    if profile == LMMS and all(outcome.rule == "static" for _, _, outcome in rows):
        samples, replies = [sample for sample, _, _ in rows], [reply for _, reply, _ in rows]
        right = lmms.is_mmbench_right_in_all_rotations(
            [sample.gold for sample in samples], replies, [fill_options_with_nan(one) for one in samples]
        )
        return Outcome("ok", float(right), None, "circular")
    golds = [sample.gold for sample, _, _ in rows]
    found = [outcome.extracted if outcome.state == "ok" else None for _, _, outcome in rows]
    verdict = vlmeval.is_right_in_all_rotations(golds, found)
    if verdict is not None:
        return Outcome("ok", float(verdict), None, "circular")
    states = {outcome.state for _, _, outcome in rows}
    for state in ("pending", "missing", "judge_failed", "unparsed"):
        if state in states:
            return Outcome(state, rule="circular")
    raise AssertionError("a circular group without a verdict has a row that is not ok")


Scorers = Mapping[Profile, Scorer]
CHOICE_SCORERS: Scorers = {OURS: score_ours_choice, VLMEVAL: score_vlmeval_choice, LMMS: score_lmms_any_letter}
