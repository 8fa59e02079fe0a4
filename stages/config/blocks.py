"""The blocks of `params.yaml` as types: one class a block, named after the stage that owns it.

Every field has bounds and one sentence that says what follows from it; the forms of the Prefect UI show the same
sentences. Defaults of the algorithm are the paper's (arXiv 2510.19307); `params.yaml` writes out the tiny profile.
Validation never changes a value. The names `size` and `nfiles` are banned: DVC does not see such parameters (DVC issue
10296).
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stages.config.block import Block as Block
from stages.config.switches import DiscriminatorSwitches, Switches

Family = Literal["qwen2_5_vl", "internvl3", "qwen2_5", "remote"]
Split = Literal["warm_start", "imitation", "validation", "test"]
HEAD_WIDTHS = (
    32,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    224,
    256,
    512,
)  # what vLLM on CPU serves; others stop at the first request
STYLES = ("terse", "steps", "arrows")
KINDS = ("sum", "alternating", "largest", "odd", "total", "rises")


class Sampling(Block):
    """How answers are drawn; every field is part of the key under which an answer is stored."""

    temperature: float = Field(1.0, ge=0, le=4, description="0 is greedy decoding; higher draws more varied answers.")
    top_p: float = Field(1.0, gt=0, le=1, description="Mass of the most likely tokens that may be drawn; 1 allows all.")
    top_k: int = Field(0, ge=0, description="Number of most likely tokens that may be drawn; 0 allows all.")
    repetition_penalty: float = Field(1.0, gt=0, le=4, description="Above 1 makes tokens already written less likely.")
    max_tokens: int = Field(512, ge=1, description="Tokens after which an answer is cut and marked `length`.")
    pattern: str | None = Field(
        None, min_length=1, description="Regular expression that whole answers match; null leaves them free."
    )


class Schedule(Block):
    """One optimisation: how long, how much at a time, how fast."""

    steps: int = Field(ge=0, description="Optimizer steps; 0 passes the model through unchanged.")
    learning_rate: float = Field(
        gt=0, lt=1, description="Peak rate of AdamW; too high forgets, too low learns nothing."
    )
    lr_scheduler_type: Literal["constant", "linear"] = Field(
        "constant", description="`linear` goes from learning_rate down to final_learning_rate."
    )
    final_learning_rate: float = Field(0.0, ge=0, lt=1, description="Where a linear schedule ends.")
    warmup_steps: int = Field(0, ge=0, description="Steps in which the rate rises from 0 to its peak.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Pull of every weight towards zero.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients longer than this are shortened to it.")
    tokens_per_pack: int = Field(
        8192, ge=64, description="Tokens of one forward pass; more is faster until memory runs out, results stay equal."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, more than steps ({self.steps}); lower it")
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate is {self.final_learning_rate}, above learning_rate ({self.learning_rate}); "
                "lower it"
            )
        return self


def _known_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"has {kind!r}; known kinds are {', '.join(KINDS)}")
    return kinds


Kinds = Annotated[tuple[str, ...], AfterValidator(_known_kinds)]


class World(Block):
    """The tiny world: pictures of handwritten digits and drawn charts with questions that need intermediate steps."""

    seed: int = Field(
        0, ge=0, description="Another seed draws another world: other pictures, questions and tiny models."
    )
    kinds: Kinds = Field(KINDS, min_length=1, strict=False, description="Kinds of question that are asked.")
    terse_kinds: Kinds = Field(
        (),
        strict=False,
        description="Kinds whose warm-start targets are the bare number, so that SFT teaches guessing there.",
    )
    code: str = Field(
        "stages/tiny/world",
        description="Code that DVC watches for tiny models; `stages/model.py` where no model is built.",
    )
    builds: str = Field(
        "stages/tiny/builds",
        description="Code that builds tiny models, watched as well; `stages/model.py` where no model is built.",
    )


class Build(Schedule):
    """A tiny model made from nothing, by training on the tiny world."""

    hidden_size: int = Field(ge=16, multiple_of=8, description="Width of the language model.")
    layers: int = Field(ge=1, description="Layers of the language model.")
    heads: int = Field(ge=1, description="Attention heads; hidden_size / heads is their width.")
    vision_hidden_size: int = Field(64, ge=16, multiple_of=8, description="Width of the vision tower.")
    vision_layers: int = Field(2, ge=1, description="Layers of the vision tower.")
    rows_per_step: int = Field(64, ge=1, description="Questions of one optimizer step.")
    vision_steps: int = Field(0, ge=0, description="Steps in which the vision tower alone learns what stands where.")
    reading_steps: int = Field(
        0, ge=0, description="First steps, in which it only reads pictures out, or short lessons."
    )
    practice_groups: int = Field(
        0, ge=0, description="Questions without pictures beside each later step: text to learn arithmetic from."
    )
    styles: dict[str, float] = Field(
        default_factory=dict,
        description="Share of each style of answer in what the model learns from; a judge has none.",
    )
    terse_kinds: Kinds = Field(
        (),
        strict=False,
        description="Kinds of question that it only sees answered with the bare number; it guesses those.",
    )

    @model_validator(mode="after")
    def _shares(self) -> Self:
        for style, share in self.styles.items():
            if style not in STYLES or share <= 0:
                raise ValueError(f"styles.{style} is {share}; known styles are {', '.join(STYLES)}, shares are above 0")
        if self.hidden_size / self.heads not in HEAD_WIDTHS:
            raise ValueError(
                f"hidden_size {self.hidden_size} / heads {self.heads} must be one of {HEAD_WIDTHS}; change one"
            )
        return self


class Endpoint(Block):
    """A model that only its provider has: it is known by name. All of this is part of the key of its answers."""

    provider: str = Field(min_length=1, description="Who runs it, such as `openai`; another name asks everything anew.")
    name: str = Field(
        min_length=1, description="What the server calls the model; give a dated name, an alias changes unseen."
    )
    replies_as: str | None = Field(None, description="Its name in replies where that does not begin with `name`.")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="How the server calls the longest answer; newer OpenAI models know only the second."
    )
    body: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of every request, such as reasoning_effort."
    )
    leave_out: tuple[str, ...] = Field(
        (), strict=False, description="Fields that the server refuses, such as seed or top_p."
    )


class Model(Block):
    """One model: built tiny, or taken from a folder, or from the hub, or asked at an endpoint."""

    family: Family = Field(
        description="Architecture; decides processor, positions and image tokens. `remote` with `endpoint`."
    )
    build: Build | None = Field(None, description="Make a tiny model of this shape from nothing.")
    path: str | None = Field(None, description="Folder of an ordinary Hugging Face checkpoint.")
    hub: str | None = Field(None, description="Name of a model on the hub; needs `revision`.")
    revision: str | None = Field(
        None, description="Commit, tag or branch on the hub; it is pinned to a commit when found."
    )
    endpoint: Endpoint | None = Field(
        None, description="Ask a model of others; `runtime.engines.<id>` says where it is reached."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="Number format in which this model answers and trains."
    )
    context_tokens: int = Field(
        4096, ge=64, description="Longest prompt with answer; longer questions are rejected by name."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("build", "path", "hub", "endpoint") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"has {' and '.join(given) or 'none'} of build, path, hub, endpoint; give exactly one")
        if (self.family == "remote") != (self.endpoint is not None):
            raise ValueError("family remote and endpoint belong together; give both or neither")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision belong together; give both or neither")
        return self


class Questions(Block):
    """Where questions come from, and how many of them each split takes."""

    kind: Literal["world", "llava", "rows"] = Field(
        description="`world` draws the tiny world, `llava` reads LLaVA JSON with an image folder, `rows` reads "
        "canonical parquet."
    )
    path: str = Field(
        description="File or folder with the questions; DVC watches it (for `world`: the code that draws it)."
    )
    images: str = Field(
        description="Folder that the image paths of `llava` files start from; DVC watches it. Otherwise the same "
        "as `path`."
    )
    splits: dict[Split, int] = Field(
        description="Questions in each split; images never cross from one split to another."
    )
    max_reject_share: float = Field(0.01, ge=0, le=1, description="Above this share of unusable rows the stage fails.")
    max_image_pixels: int = Field(
        50_000_000,
        ge=1,
        le=89_478_485,
        description="Images of more pixels are rejected unread; a small file can claim gigabytes.",
    )
    max_characters: int = Field(
        16_000,
        ge=1,
        description="Rows with more text, question and answer together, are rejected; 16,000 are about 4,000 "
        "tokens of English.",
    )

    @model_validator(mode="after")
    def _all_splits(self) -> Self:
        for split in ("warm_start", "imitation", "validation", "test"):
            if self.splits.get(split, 0) < 1:  # type: ignore[call-overload]
                raise ValueError(f"splits.{split} is missing or below 1; every split needs at least one question")
        return self


class WarmStart(Schedule):
    """SFT of the base student (App. C: rate 1e-5 falling linearly to 1e-6)."""

    rows_per_step: int = Field(64, ge=1, description="Questions of one optimizer step.")
    freeze_vision: bool = Field(False, description="Leaves the vision tower as it is.")
    max_reject_share: float = Field(
        0.01, ge=0, le=1, description="Above this share of questions that are longer than the model it fails."
    )


class Teacher(Block):
    """One teacher and how it is asked (§3.2, App. C)."""

    model: str = Field(description="Which entry of `models` answers.")
    responses: int = Field(16, ge=1, description="N answers a question; raising it later pays only for the new ones.")
    draw: int = Field(0, ge=0, description="Another number asks for a fresh set of answers instead of the stored ones.")
    sampling: Sampling = Field(description="How the answers are drawn.")
    max_reject_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Above this share of answers that can't be had (prompt too long, image broken) it fails.",
    )


class Verdict(Block):
    """The judge: an LLM that compares an answer with the reference and says 1 or 0 (§3.3, Fig. 4)."""

    model: str = Field(description="Which entry of `models` judges.")
    max_tokens: int = Field(256, ge=8, description="Longest verdict; one that is cut has no tag and counts as failed.")
    max_failed_share: float = Field(
        0.05, ge=0, le=1, description="Above this share of failed verdicts the stage stops."
    )
    rule_first: bool = Field(
        False, description="An answer that is a short reference and nothing else is right without asking; saves calls."
    )
    constrained: bool = Field(
        False,
        description="Lets the engine write nothing but a short explanation and a verdict; engines that can't are "
        "named.",
    )
    exam: bool = Field(
        True,
        description="Asks the judge labelled cases and attacks too, once a judge; the report then says how good it is.",
    )


class Pool(Block):
    """Which teachers' answers the student learns from; the only place where teachers are chosen (§4.3)."""

    teachers: tuple[str, ...] = Field(min_length=1, strict=False, description="Entries of `teachers` that take part.")
    truncated: Literal["keep", "drop"] = Field(
        "drop", description="What happens to answers that were cut at max_tokens."
    )
    wrong: Literal["keep", "drop"] = Field(
        "keep",
        description="What happens to answers judged wrong; those whose verdict failed stay.",
    )
    near_duplicates: Literal["keep", "drop"] = Field(
        "keep",
        description="`drop` keeps the first of a teacher's answers to a question that are alike; less variety "
        "was faked.",
    )
    alike: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Answers are near-duplicates from this share of common word 3-grams on; 1 means equal words.",
    )


class Rollout(Block):
    """Answers of the warm-started student, for the discriminator's pre-training (§3.2)."""

    responses: int = Field(16, ge=1, description="N answers a question.")
    draw: int = Field(0, ge=0, description="Another number asks for a fresh set of answers instead of the stored ones.")
    sampling: Sampling = Field(description="How the answers are drawn.")
    max_reject_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Above this share of answers that can't be had (prompt too long, image broken) it fails.",
    )


class Discriminator(Schedule, DiscriminatorSwitches):
    """Pre-training of the discriminator (Eq. 1; App. C: rate 1e-5 falling linearly to 1e-6)."""

    questions_per_step: int = Field(8, ge=1, description="Questions of one optimizer step.")
    responses_per_side: int = Field(
        4, ge=1, description="Student answers, and teacher answers, of each question in a step."
    )
    held_out_share: float = Field(0.1, gt=0, lt=0.5, description="Share of questions kept for measuring accuracy.")


class Ril(Schedule, Switches):
    """The loop: sample, update the discriminator, reward, update the student (Alg. 2, Eq. 2)."""

    questions_per_step: int = Field(144, ge=1, description="Questions of one optimizer step (App. C: 4 x 6 x 6 = 144).")
    group: int = Field(4, ge=1, description="G: student answers a question, and as many teacher answers (§3.3).")
    inner_updates: int = Field(1, ge=1, le=16, description="mu: updates on one set of answers (Table 5a: 1 is best).")
    discriminator_learning_rate: float = Field(1e-6, gt=0, lt=1, description="Constant rate of the discriminator.")
    freeze_vision: bool = Field(
        True, description="Leaves the vision tower as it is (Table 5c lists language parts only)."
    )
    sampling: Sampling = Field(description="How the student's answers are drawn.")
    validation_every: int = Field(50, ge=1, description="Steps between greedy evaluations on the validation split.")
    keep: Literal["best", "last", "both"] = Field(
        "last",
        description="Which checkpoint becomes the model, by validation; `both` is the best, with the last in "
        "data/ril/last.",
    )
    samples_per_step: int = Field(2, ge=0, description="Questions a step whose answers are kept for the report.")
    max_reject_share: float = Field(
        0.01, ge=0, le=1, description="Above this share of questions that are longer than the model it fails."
    )


class Evaluate(Block):
    """How models are scored on the held-out split: the same prompts for all, greedy."""

    split: Split = Field("test", description="Split that is scored; no stage trains on `validation` or `test`.")
    max_tokens: int = Field(512, ge=1, description="Longest answer; a longer one is cut and scored as it is.")
    shuffled_images: bool = Field(
        True, description="Asks everything once more with the images exchanged, to show that answers come from seeing."
    )
    benchmarks: tuple[str, ...] = Field(
        (), strict=False, description="Benchmarks to answer; `ril benchmarks` lists them."
    )
    folder: str = Field(
        "datasets/benchmarks",
        description="Folder of benchmark files; DVC watches it (for the tiny world: the code that writes it).",
    )
    profiles: tuple[Literal["ours", "vlmeval@0.0.20", "lmms@0.7.3"], ...] = Field(
        ("ours",),
        min_length=1,
        strict=False,
        description="Rules of scoring; the first gives the headline.",
    )
    style: Literal["dataset", "qwen", "internvl", "lmms"] = Field(
        "dataset", description="Words in which benchmarks ask; another style moves scores by up to 20 points."
    )
    cot: Literal["off", "on"] = Field(
        "off", description="`on` asks for steps and a marked last line; needs a larger max_tokens."
    )
    judge: str = Field(
        "judge", description="Entry of `models` that judges where rules can't; better not the one of training."
    )
    max_reject_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Above this share of prompts that the model refuses (too long) it fails; they count as wrong.",
    )
    strict_md5: bool = Field(False, description="Refuses benchmark files whose md5 is none of the published ones.")


class Evaluation(Block):
    """One model that is scored."""

    checkpoint: str = Field(description="Folder of the model, an out of the stage that makes it.")
    title: str = Field(description="Name in tables and plots.")


class Report(Block):
    """The page about a run."""

    samples: int = Field(12, ge=1, le=200, description="Questions in the gallery of answers.")


class Vllm(Block):
    """vLLM in the stage's own process: deterministic on CPU, no server to watch."""

    kind: Literal["vllm"] = Field(description="vLLM in the stage's process.")
    sequences: int = Field(256, ge=1, description="Answers written at a time; more is faster until memory runs out.")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that the model spans.")


class Calling(Block):
    """How long and how often a server is asked."""

    concurrency: int = Field(
        64, ge=1, le=4096, description="Requests under way at a time; a rented endpoint has a limit."
    )
    timeout: float = Field(
        600.0, gt=0, description="Seconds after which one try is given up; the longest answer must fit in."
    )
    deadline: float = Field(
        86400.0, gt=0, description="Seconds after which a wave is given up; what is finished stays."
    )
    attempts: int = Field(
        6, ge=1, le=100, description="Tries of one request (429, 5xx, broken replies), with growing waits."
    )


class VllmServer(Calling):
    """`vllm serve` processes that the stage starts, watches and stops, or that run already (`urls`)."""

    kind: Literal["vllm_server"] = Field(description="Servers of vLLM.")
    sequences: int = Field(
        256, ge=1, description="Answers one replica writes at a time; more is faster until memory runs out."
    )
    concurrency: int = Field(256, ge=1, le=4096, description="Requests under way at a time, over all replicas.")
    timeout: float = Field(3600.0, gt=0, description="Seconds after which one try is given up; queueing counts.")
    replicas: int = Field(
        1, ge=1, le=64, description="Servers of this model; a request goes to the one with least to do."
    )
    tensor_parallel: int = Field(1, ge=1, description="GPUs over which each layer is split.")
    pipeline_parallel: int = Field(1, ge=1, description="Groups of GPUs over which the layers are split.")
    gpus: tuple[int, ...] = Field(
        (), strict=False, description="CUDA devices of all replicas in order; else all visible ones."
    )
    args: tuple[str, ...] = Field((), strict=False, description="Further arguments of `vllm serve`, for speed only.")
    port: int | None = Field(
        None, ge=1024, le=65000, description="First TCP port on 127.0.0.1; without it a Unix socket."
    )
    start_seconds: float = Field(1800.0, gt=0, description="How long the servers may take until they are ready.")
    urls: tuple[str, ...] = Field(
        (), strict=False, description="Running servers of this very model instead of own ones."
    )


class OpenAi(Calling):
    """Any endpoint with `/chat/completions`; only for models with `models.<id>.endpoint`."""

    kind: Literal["openai"] = Field(description="An endpoint with OpenAI's chat completions.")
    base_url: str = Field(pattern=r"^https?://", description="Up to and with `/v1`, as the provider documents it.")
    api_key: str | None = Field(
        None, description="Name of the environment variable with the key; no key stands in a file."
    )
    one_answer_a_request: bool = Field(
        False, description="For servers that know no `n`: a question is sent once an answer."
    )


class Replay(Block):
    """The store alone: a stage that lacks answers fails and says which."""

    kind: Literal["replay"] = Field(description="Nothing is asked; what the store lacks is an error.")


ENGINE_KINDS: dict[str, type[Block]] = {"vllm": Vllm, "vllm_server": VllmServer, "openai": OpenAi, "replay": Replay}
EngineSettings = Annotated[Vllm | VllmServer | OpenAi | Replay, Field(discriminator="kind")]


class Runtime(Block):
    """What changes how fast things run, never what comes out; no stage depends on it."""

    kv_cache_gib: int = Field(1, ge=1, description="Memory of one vLLM engine's key-value cache on CPU, GiB.")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="Share of GPU memory one vLLM engine takes.")
    engines: dict[str, EngineSettings] = Field(
        default_factory=dict,
        description="How each model is run, by entry of `models`; vLLM in process where none is given.",
    )
    processes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Processes on this machine that train together, one a GPU; 1 trains in the stage's own.",
    )
    gpu_slots: int = Field(
        0,
        ge=0,
        description="Stages that load a model at a time on this machine, in all projects with this store; 0: no bound.",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="DeepSpeed ZeRO stage: how much of the training state is sharded."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recomputes activations to save memory, for about 25 % time."
    )
    checkpoint_minutes: float = Field(
        10.0,
        ge=0,
        description="Minutes between checkpoints of a training stage (0: after every step); a crash costs that much.",
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="Checkpoints kept while a stage trains; they go when it has ended well."
    )
    prefect_probe_seconds: float = Field(
        1.5, gt=0, description="How long a stage waits for a Prefect server to answer."
    )
