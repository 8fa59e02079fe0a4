"""The model card of a trained checkpoint: metadata for the hub, and text for people.

It is made when it is asked for, from the results at that time: the folder of a stage holds none, because scores are
made after it, and DVC would call the stage changed. It holds no date and no wall time: equal results give an equal
card.
"""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from flows.publish.facts import ANOTHER_IMAGE, CheckpointFacts, MeasuredScore, ModelOrigin
from flows.publish.licences import LICENCES
from stages.benchmarks.scores import NORMAL_95
from stages.config.plain import make_printable
from stages.job.files import read_json

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_PAPER = "https://arxiv.org/abs/2510.19307"
UNKNOWN = "unknown"
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_TITLES = {"ril": "RIL student", "warm_start": "warm-started student"}


def make_model_card(facts: CheckpointFacts, name: str, licence: str | None = None) -> str:
    """Returns the card as Markdown with metadata in front; `name` is how readers load it: hub name or folder.

    `licence` replaces that of the base, which the checkpoint has otherwise; the caller answers for it.
    """
    template = _open_template()
    data = make_metadata(facts, name, licence)
    text = template.render(
        facts=facts,
        name=name,
        title=f"{_TITLES[facts.stage]}, {facts.checkpoint.family}",
        sees=sees_images(facts),
        dtype=_DTYPES[facts.checkpoint.precision],
        licence=licence or (facts.base.licence.title if facts.base.licence else UNKNOWN),
        notices=list_notices(facts.origins),
        score_table=tabulate_scores(facts.scores),
        shuffled=any(ANOTHER_IMAGE in one.remark for one in facts.scores),
        adapter=any(facts.checkpoint.folder.glob("*/adapter_config.json")),
        limits=facts.checkpoint.limits.list_set(),
        paper=_PAPER,
        unknown=UNKNOWN,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _open_template() -> jinja2.Template:
    # A card is Markdown: values are escaped for cells by the filter `cell`, not for HTML.
    environment = jinja2.Environment(  # nosec B701
        loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = format_cell
    environment.filters["quote"] = shlex.quote
    environment.filters["score"] = format_score
    return environment.get_template(_TEMPLATE.name)


def format_cell(value: Any) -> str:
    """Returns a value as one cell of a Markdown table: one line, no markup of its own."""
    if value is None or value == "":
        return UNKNOWN
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return make_printable(text).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def compute_score_interval(score: MeasuredScore) -> tuple[float, float] | None:
    """Returns the ends of the 95 % interval of a score, in per cent; None if its error is unknown.

    Where all answers are right, or all wrong, the standard error is 0 and says nothing: the ends are Wilson's then.
    """
    if not math.isfinite(score.half_width):
        return None
    if score.half_width == 0 and score.value in (0.0, 100.0):
        room = 100 * NORMAL_95**2 / (score.rows + NORMAL_95**2)
        return (0.0, room) if score.value == 0 else (100.0 - room, 100.0)
    return max(0.0, score.value - score.half_width), min(100.0, score.value + score.half_width)


def format_score(score: MeasuredScore | None) -> str:
    """Returns a score with its 95 % interval and remark, such as "74.6 (70.1 to 79.1)"; "" without one."""
    if score is None:
        return ""
    found = compute_score_interval(score)
    told = f"{score.value:.1f} ({found[0]:.1f} to {found[1]:.1f})" if found else f"{score.value:.1f}"
    return f"{told}; {score.remark}" if score.remark else told


@dataclass(frozen=True)
class ScoreRow:
    """A benchmark on a card: the score of each model, in the order of its columns."""

    title: str
    rule: str
    rows: int
    scores: Sequence[MeasuredScore | None]


def tabulate_scores(scores: Sequence[MeasuredScore]) -> tuple[list[str], list[ScoreRow]]:
    """Returns the models in order, the card's own in bold, and a row for each benchmark."""
    own = {one.model for one in scores if one.own}
    models = list(dict.fromkeys(one.model for one in scores))
    found: dict[tuple[str, str, int], dict[str, MeasuredScore]] = {}
    for one in scores:
        found.setdefault((one.title, one.rule, one.rows), {})[one.model] = one
    rows = [ScoreRow(*key, [of.get(model) for model in models]) for key, of in found.items()]
    return [f"**{format_cell(one)}**" if one in own else format_cell(one) for one in models], rows


def sees_images(facts: CheckpointFacts) -> bool:
    """Whether the checkpoint takes images, by its config.json."""
    return "vision_config" in read_json(facts.checkpoint.weights / "config.json")


def list_notices(origins: Sequence[ModelOrigin]) -> list[str]:
    """Returns what the licences of base and teachers ask a published model to show, each once, with who asks."""
    asking: dict[str, list[str]] = {}
    for one in origins:
        if one.role != "judge" and one.licence is not None and one.licence.notice:
            asking.setdefault(one.licence.notice, []).append(one.name)
    return [f"{', '.join(dict.fromkeys(names))}: {notice}" for notice, names in asking.items()]


def make_metadata(facts: CheckpointFacts, name: str, licence: str | None = None) -> "ModelCardData":
    """Returns the metadata that the hub reads: licence, base, data sets, scores as model-index."""
    from huggingface_hub import ModelCardData  # local import: reads the environment, which `ril` sets first

    results = [_make_result(facts, one) for one in facts.scores if one.own]
    data_sets = list(dict.fromkeys(facts.data["hub"]))
    base = facts.base
    values: dict[str, Any] = {
        **_describe_licence(facts, licence),
        **({"base_model": base.hub, "base_model_relation": "finetune"} if base.hub else {}),
        **({"datasets": data_sets} if data_sets else {}),
        **({"model_name": Path(name).name, "eval_results": results} if results else {}),
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if sees_images(facts) else "text-generation",
        "tags": list(dict.fromkeys(["ril", "arxiv:2510.19307", facts.stage, *(["lora"] if facts.lora else [])])),
        "metrics": ["accuracy"],
    }
    return ModelCardData(**values)


def _describe_licence(facts: CheckpointFacts, chosen: str | None) -> dict[str, str]:
    """Returns the hub's keys for the licence: a name that it knows, or `other` with name and link."""
    found = LICENCES.get(chosen or "") if chosen else facts.base.licence
    if found is None:
        return {"license": "other", "license_name": chosen or UNKNOWN}
    if found.known_to_hub:
        return {"license": found.id}
    return {
        "license": "other",
        "license_name": found.id,
        **({"license_link": found.link} if found.link else {}),
    }


def _make_result(facts: CheckpointFacts, score: MeasuredScore) -> "EvalResult":
    from huggingface_hub import EvalResult

    found = compute_score_interval(score)
    interval = f", 95 % interval {found[0]:.1f} to {found[1]:.1f}" if found else ""
    held_out = facts.data["hub"][0] if facts.data["hub"] else facts.data["kind"]
    return EvalResult(
        task_type="image-text-to-text" if sees_images(facts) else "text-generation",
        dataset_type=score.source or held_out,
        dataset_name=score.title,
        metric_type="accuracy",
        metric_name=f"accuracy, {score.rule}, per cent{interval}, {score.rows} rows",
        metric_value=round(score.value, 2),
    )
