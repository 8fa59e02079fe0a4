"""The swept value of each arm: chosen on validation of the tuning worlds, written to a file, committed, then used.

studies/results/<study>/rates.json
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.git import GitError, run_git
from stages.config.yaml import ParamsError
from stages.job.files import read_json, write_text
from studies.records import LAST_TWO, StudyRecord
from studies.runs import TUNING
from studies.study import Seeds, Study

RATES = "rates.json"
Chosen = dict[str, dict[str, float]]  # the swept parameter with its value, by arm


def score_swept_values(records: Iterable[StudyRecord], seeds: Sequence[Seeds]) -> dict[str, dict[float, float]]:
    """For each arm the score of each value: the mean of the last two validation scores, mean over the tuning seeds.

    A value without a result on all `seeds` is left out.
    """
    wanted = {(one.world, one.seed) for one in seeds}
    found: dict[str, dict[float, dict[tuple[int, int], float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        at = (record.world, record.seed)
        if record.purpose == TUNING and at in wanted:
            for value in record.swept.values():
                found[record.arm][value][at] = record.validation[LAST_TWO]
    return {
        arm: {value: sum(ends.values()) / len(ends) for value, ends in by_value.items() if set(ends) == wanted}
        for arm, by_value in found.items()
    }


def choose_swept_values(records: Iterable[StudyRecord], study: Study) -> Chosen:
    """For each arm the value with the best score; of equal values the smaller. Arms without a score are left out."""
    key = next(iter(study.sweep), "")
    scored = score_swept_values(records, study.tuning)
    return {
        arm: {key: max(scores, key=lambda value: (scores[value], -value))} for arm, scores in scored.items() if scores
    }


def resolve_values(study: Study, chosen: Mapping[str, Mapping[str, float]]) -> Chosen:
    """`chosen` with the values of arms that use another arm's."""
    found = {name: dict(values) for name, values in chosen.items()}
    for name, arm in study.arms.items():
        if study.is_swept(name) and (arm.rate_of or name) in chosen:
            found[name] = dict(chosen[arm.rate_of or name])
    return found


def write_rates(folder: Path, study: Study, records: Sequence[StudyRecord]) -> Path:
    """Writes the chosen values with all scores and the keys of the runs they come from. Returns the file."""
    key, scored = next(iter(study.sweep)), score_swept_values(records, study.tuning)
    chosen = choose_swept_values(records, study)
    worlds = ", ".join(str(one.world) for one in study.tuning)
    values: dict[str, Any] = {
        "parameter": key,
        "measure": f"mean of the last two validation scores, mean over the worlds {worlds}; of equals the smaller",
        "chosen": {arm: values[key] for arm, values in sorted(chosen.items())},
        "scores": {
            arm: {f"{value:g}": round(score, 6) for value, score in sorted(scores.items())}
            for arm, scores in sorted(scored.items())
        },
        "runs": {one.name: one.key for one in records if one.purpose == TUNING},
    }
    path = folder / RATES
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    return path


def read_rates(folder: Path) -> Chosen:
    """The chosen values in a study's folder. Raises ParamsError when there is no such file."""
    path = folder / RATES
    if not path.is_file():
        raise ParamsError(f"{path} is missing; it is written when the sweep has run: ril experiments run {folder.name}")
    found = read_json(path)
    return {arm: {found["parameter"]: float(value)} for arm, value in found["chosen"].items()}


def commit_rates(root: Path, path: Path, commit: bool) -> None:
    """Holds that Git has the file as it is; with `commit`, commits it alone first.

    Raises ParamsError when it is not committed, GitError when Git refuses.
    """
    if is_committed(root, path):
        return
    if not commit:
        raise ParamsError(
            f"the sweep is finished and its choice is in {path}. The comparison starts when Git has this file: commit "
            "it, or give --commit-rates; then the same command continues"
        )
    run_git(root, "add", "--", str(path))
    run_git(root, "commit", "--quiet", "--only", "--message", f"Rates of study {path.parent.name}", "--", str(path))


def is_committed(root: Path, path: Path) -> bool:
    """Whether HEAD has the file with the content that it has in the workspace."""
    if not path.is_file():
        return False
    name = path.resolve().relative_to(root.resolve()).as_posix()
    try:
        return run_git(root, "show", f"HEAD:{name}") == path.read_bytes()
    except GitError:
        return False
