"""MMBench in English and Chinese: all rotations of a question's options; correct only if all rotations are."""

from stages.benchmarks.prompts import CHOICE_PROMPTS, MakePrompt, PromptPart, format_options
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import LMMS, OURS, VLMEVAL, score_lmms_mmbench, score_ours_choice, score_vlmeval_choice
from stages.benchmarks.spec import Hub, QuestionField, Spec, Tsv, make_tsv_choice_reader
from stages.benchmarks.tables import TableRow

ROTATION = 1_000_000  # index of the k-th rotation is k * ROTATION + index of the question
_GROUPS = ("category", "l2-category", "split")
_LAST = {
    "en": "Answer with the option's letter from the given choices directly.",
    "cn": "请直接使用所提供的选项字母作为答案回答。",
}


def make_mmbench_tsv_sample(row: TableRow) -> Sample | None:
    """Returns the sample of a TSV row; None without an answer (old test splits), which cannot be scored."""
    if not row.text("answer", ""):
        return None
    sample = make_tsv_choice_reader(*_GROUPS)(row)
    question = row.text("g_index", "") or str(int(row.text("index")) % ROTATION)
    return None if sample is None else Sample(**{**sample.__dict__, "extra": {"question": question}})


def make_mmbench_hub_sample(row: TableRow) -> Sample | None:
    """Returns the sample of a row of lmms-lab/MMBench: missing options are "nan", the index may be text."""
    values = {key: "" if value == "nan" else value for key, value in row.values.items()}
    values["index"] = int(str(values["index"]))
    return make_mmbench_tsv_sample(TableRow(row.where, values, row.pictures, row.config))


def make_lmms_mmbench_prompt(language: str) -> MakePrompt:
    """Returns lmms-eval's prompt: hint and question on one line, then the options."""

    def ask(sample: Sample) -> list[PromptPart]:
        question = " ".join(part for part in (sample.hint, sample.question) if part)
        lines = [f"{question} There are several options:", *format_options(sample), _LAST[language]]
        return [*sample.pictures, "\n".join(lines)]

    return ask


def make_mmbench_spec(language: str, column: str, md5s: dict[str, dict[str, str]]) -> Spec:
    """Returns the spec of one language."""
    upper = language.upper()
    return Spec(
        id=f"mmbench_{language}",
        title=f"MMBench {upper}",
        column=column,
        expected=4329,
        licence="Apache-2.0",
        tsv=tuple(Tsv(f"MMBench_{name}", known, folder="benchmarks/MMBench") for name, known in md5s.items()),
        hub=(Hub(("lmms-lab/MMBench", "lmms-lab-encoder/MMBench"), "dev", language),),
        make={"tsv": make_mmbench_tsv_sample, "hub": make_mmbench_hub_sample},
        needs=dict.fromkeys(("tsv", "hub"), ("index", "question", "A", "B", "answer", "image")),
        prompts={**CHOICE_PROMPTS, "lmms": make_lmms_mmbench_prompt(language)},
        scorers={OURS: score_ours_choice, VLMEVAL: score_vlmeval_choice, LMMS: score_lmms_mmbench},
        groups=_GROUPS,
        fields=QuestionField,
        circular=True,
    )


SPECS = (
    make_mmbench_spec(
        "en",
        "MMB",
        {
            "DEV_EN": {"b6caf1133a01c6bb705cf753bb527ed8": "v1.0"},
            "DEV_EN_V11": {"30c05be8f2f347a50be25aa067248184": "v1.1"},
            "TEST_EN_V11": {
                "8d1a704e791df6f5d9fb3ef782b65365": "v1.1",
                "26f0f15381a21720255091d3e0316ce6": "v1.1, no answers",
            },
        },
    ),
    make_mmbench_spec(
        "cn",
        "MMB-CN",
        {
            "DEV_CN": {"08b8fc3324a5ed74155350f57be69fbd": "v1.0"},
            "DEV_CN_V11": {"593f9b5f6bea453d870a798b34ae4f37": "v1.1"},
            "TEST_CN_V11": {
                "156e6569f9547afb16603eca16e85373": "v1.1",
                "74bbe4556dac745613c7cbe5ad787050": "v1.1, no answers",
            },
        },
    ),
)
