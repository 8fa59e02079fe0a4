"""Forms of the Prefect UI, made from the models that validate `params.yaml`: same types, bounds and help."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

from flows.profile import list_profiles
from stages.config.params import Params, load_params
from stages.config.table import STAGES
from stages.config.yaml import ParamsError

PIPELINE = "pipeline"  # the target that stands for every stage
NO_PROFILE = "none"
MOST_JOBS = 16
_FREE = ("runtime", "budget", "tracking")  # blocks that no result depends on
_MESSAGE_CHARACTERS = 400  # of Prefect's message about a value, which repeats all of it
# The report depends on nearly all parameters, because its page shows them; only these are decided there.
_OWN_KEYS = {"report": ("report",)}
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Form:
    """What the UI asks before it starts a stage, or everything."""

    target: str  # for DVC: `ril`, `teacher@internvl3`; PIPELINE for all
    title: str
    schema: dict[str, Any]  # JSON schema in the dialect of Prefect
    values: dict[str, Any]  # what the form holds when it opens: params.yaml with defaults filled in

    @property
    def stage(self) -> str:
        """The stage without its item."""
        return self.target.split("@")[0]


def make_forms(root: Path) -> list[Form]:
    """A form for the whole pipeline and for each stage; ParamsError when params.yaml can't be used."""
    params = load_params(root / "params.yaml")
    names = (NO_PROFILE, *list_profiles(root))
    asked = [name for name in Params.model_fields if name not in _FREE]
    everything = [key for name in asked for key in _expand_name(name, params)]
    found = [_make_form(PIPELINE, "Everything that is out of date", everything, params, names)]
    for stage in STAGES.values():
        own = (stage.name, stage.items)
        keys = sorted(
            _OWN_KEYS.get(stage.name, stage.params), key=lambda key: key.split(".")[0] not in own
        )  # its own block first
        for item in getattr(params, stage.items) if stage.items else [None]:
            target = f"{stage.name}@{item}" if item else stage.name
            found.append(_make_form(target, stage.title, [key.format(item=item) for key in keys], params, names))
    return found


def check_values(form: Form, values: Mapping[str, Any]) -> None:
    """Raises ParamsError when `values` hold what the form does not offer; Prefect's own check, which a request to the
    server can switch off.
    """
    from prefect.utilities.schema_tools.validation import ValidationError, validate

    try:
        validate(dict(values), form.schema, raise_on_error=True)
    except ValidationError as error:
        raise ParamsError(
            f"the form of {form.target} does not offer this: {str(error)[:_MESSAGE_CHARACTERS]}"
        ) from error


def _expand_name(name: str, params: Params) -> Iterator[str]:
    """`models` is asked model by model: `models.student`, `models.judge`."""
    value = getattr(params, name)
    return (f"{name}.{item}" for item in value) if isinstance(value, dict) else iter([name])


def _make_form(target: str, title: str, keys: list[str], params: Params, names: tuple[str, ...]) -> Form:
    fields: dict[str, Any] = {
        "settings": (_make_settings_model(keys), Field(title="Settings", description=_SETTINGS_HELP))
    }
    if target == PIPELINE:
        fields["jobs"] = (int, Field(1, ge=1, le=MOST_JOBS, title="Stages at a time", description=_JOBS_HELP))
    else:
        fields["upstream"] = (bool, Field(True, title="Stages before it too", description=_UPSTREAM_HELP))
    fields["force"] = (bool, Field(False, title="Even when nothing changed", description=_FORCE_HELP))
    fields["profile"] = (Literal[names], Field(NO_PROFILE, title="Profile", description=_PROFILE_HELP))
    asked: type[BaseModel] = create_model("Parameters", **fields)
    schema = asked.model_json_schema(ref_template="#/definitions/{model}")
    schema["definitions"] = schema.pop("$defs", {})
    for part in [schema, *schema["definitions"].values()]:
        part.pop("required", None)  # what a form leaves out stays as in params.yaml
        for position, field in enumerate(part.get("properties", {}).values()):
            field["position"] = position  # else Prefect sorts by name
    return Form(target, title, schema, _collect_values(keys, params))


_SETTINGS_HELP = (
    "As in params.yaml. Left as they are, the stage runs in the workspace and dvc.lock records it; "
    "with a changed value it runs as an experiment in a copy, and the workspace stays as it is."
)
_JOBS_HELP = (
    "Above 1, stages that do not need each other run side by side: teachers in parallel. They share memory and GPUs; "
    "an experiment runs one stage after the other."
)
_UPSTREAM_HELP = "Off: the stage takes what lies in data/, even if the stages before it are out of date."
_FORCE_HELP = "Runs although DVC would skip it; of the stages before it as well, when those take part."
_PROFILE_HELP = "Lays profiles/NAME.yaml over params.yaml for this run; values changed above stand over it."


def _make_settings_model(keys: list[str]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    items: dict[str, list[str]] = {}
    for key in keys:
        block, _, item = key.partition(".")
        items.setdefault(block, []).extend([item] if item else [])
    for block, names in items.items():
        info = Params.model_fields[block]
        if names:
            group = create_model(block.title(), __config__=_STRICT, **_select_fields(info.annotation, names))
            fields[block] = (group, ...)
        else:
            fields[block] = (info.annotation, info)
    return create_model("Settings", __config__=_STRICT, **fields)  # type: ignore[no-any-return]


def _select_fields(block: Any, names: list[str]) -> dict[str, Any]:
    """Fields for some entries of a block of items (`teachers.internvl3`) or for some fields of a block
    (`ril.objective`).
    """
    if get_origin(block) is dict:
        return dict.fromkeys(names, (get_args(block)[1], ...))
    return {name: (block.model_fields[name].annotation, block.model_fields[name]) for name in names}


def _collect_values(keys: list[str], params: Params) -> dict[str, Any]:
    tree = params.model_dump(mode="json")
    values: dict[str, Any] = {}
    for key in keys:
        block, _, item = key.partition(".")
        if item:
            values.setdefault(block, {})[item] = tree[block][item]
        else:
            values[block] = tree[block]
    return values
