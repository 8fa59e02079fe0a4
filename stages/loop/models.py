"""The models of the RIL loop: the policy, the adversary, the engines of student, judge and scoring teachers."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch

from stages.adversary.adversary import Adversary, AdversarySettings
from stages.adversary.diagnostics import SpreadCheck
from stages.adversary.discriminator_model import DiscriminatorCollator, DiscriminatorModel
from stages.config.discriminator import Discriminator as DiscriminatorBlock
from stages.config.lora import get_quantization
from stages.config.objective import Objective
from stages.config.placement import find_gpu_use, place_loop
from stages.config.ril import Ril
from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.config.verdict import Verdict
from stages.corpora.rows import Question
from stages.engines.engine import Engine, SharingEngine, StartOptions, TrainableEngine
from stages.engines.start import make_null_engine, start_engine, start_trainable
from stages.job.devices import list_devices
from stages.job.job import Job
from stages.judging.rubric import RubricJudge
from stages.loop.own_rewards import OwnRewards
from stages.loop.teachers import LoopTeacher, read_teachers, start_teachers
from stages.policy.policy import Policy
from stages.reward_functions.functions import RewardFunctions
from stages.training.engine_config import explain_config
from stages.training.frozen import FrozenShards
from stages.training.passes import PaddingGroups
from stages.training.ranks import free_cached_memory, get_ranks
from stages.training.trainer import Trainer
from stages.vlm.checkpoint import Checkpoint, open_verified
from stages.vlm.context_limit import explain_too_long
from stages.vlm.reader import Network, Reader, load_network, load_reader


@dataclass(frozen=True)
class RilModels:
    """All models of the loop."""

    checkpoint: Checkpoint  # of the SFT student
    reader: Reader
    policy: Policy
    adversary: Adversary | None  # None if the objective uses no discriminator
    engine: TrainableEngine  # samples from the student; a null engine on ranks other than the first
    judge: Engine | None  # None if the reward uses no verdict, and on ranks other than the first
    teachers: tuple[LoopTeacher, ...]  # of `ril.distillation`; none unless the objective distils
    functions: OwnRewards | None  # None if `ril.rewards` has none, and on ranks other than the first
    serves_adapter: bool  # the engine gets the student's adapter alone; on all ranks
    sleepers: tuple[str, ...]  # entries of `models` whose engines sleep while the ranks compute; on all ranks

    @property
    def trainers(self) -> dict[str, Trainer]:
        """The trainers by checkpoint name."""
        adversary = {"discriminator": self.adversary.trainer} if self.adversary else {}
        return {"student": self.policy.trainer, **adversary}

    @property
    def judge_sleeps(self) -> bool:
        """Whether the judge must finish before the ranks compute."""
        return bool(set(self.sleepers) - {"student", *(one.name for one in self.teachers)})

    def sleep_engines(self) -> None:
        """Frees the GPUs of engines that share them with the ranks; the first rank calls this before all compute."""
        for engine in self._list_sleepers():
            engine.sleep()

    def wake_engines(self) -> None:
        """Gives the engines their GPU memory back, after every rank has freed what it caches; all ranks call this."""
        if self.sleepers:
            free_cached_memory()
            for engine in self._list_sleepers():
                engine.wake()

    def push_weights(self) -> int:
        """Gives the engine the student's weights, or its adapter; returns the bytes that were sent.

        All ranks call this; on those other than the first nothing is sent.
        """
        if not self.serves_adapter:
            return self.engine.update_weights(self.policy.iter_weights())
        save, size = self.policy.export_adapter()
        return self.engine.update_adapter(save, size)

    def _list_sleepers(self) -> list[SharingEngine]:
        engines = [self.engine] * ("student" in self.sleepers) + [self.judge] * self.judge_sleeps
        scoring = [one.engine for one in self.teachers if one.name in self.sleepers]
        return [engine for engine in (*engines, *scoring) if isinstance(engine, SharingEngine)]

    def explain_refusal(self, question: Question) -> str | None:
        """Returns the reason why the question exceeds the student's context, None if it fits."""
        return explain_too_long(self.reader, self.checkpoint, question.messages, question.images)

    def explain_unscored(self, question: Question, answer_tokens: int) -> str | None:
        """Returns why a teacher cannot score so long an answer to the question, None if all can."""
        reasons = (one.explain_refusal(question, answer_tokens) for one in self.teachers)
        return next((reason for reason in reasons if reason is not None), None)


@contextmanager
def open_models(job: Job, objective: Objective) -> Iterator[RilModels]:
    """Loads the models that the objective needs and yields them; engines run on the first rank only.

    The engines are closed when the block ends, however it ends: one in this process keeps its cache otherwise.
    """
    checkpoint = open_verified(job.input("data/warm_start"), job.store)
    judge_checkpoint = open_verified(job.input(f"data/model/{job.block(Verdict).model}"), job.store)
    runtime, here = job.block(Runtime), get_ranks()
    judge_name = job.block(Verdict).model if objective.asks_judge else None
    count = len(list_devices())
    reader = load_reader(checkpoint)
    teachers = read_teachers(job, ("data/warm_start", reader)) if objective.distils else []
    names = [one.name for one in teachers]
    gpus = place_loop(runtime, judge_name, count, names).engines if count else {}
    need = StartOptions(
        job.store / "logs", say=job.progress.say, own_process=here.count > 1, stage=job.stage, spending=job.spending
    )
    with ExitStack() as stack:
        functions = open_functions(job, objective) if here.first else None
        if functions is not None:
            stack.callback(functions.close)
        with job.measure_time("start"):
            compares = objective.rollout_correction != "none"
            rank = find_served_rank(job.block(Ril), runtime)
            student_need = replace(need, log_probs=compares, gpus=gpus.get("student", ()), adapter_rank=rank)
            engine = start_trainable(checkpoint, runtime, student_need) if here.first else make_null_engine(checkpoint)
            stack.callback(engine.close)
            judge: Engine | None = None
            if judge_name is not None and here.first:
                judge = start_engine(judge_checkpoint, runtime, replace(need, gpus=gpus.get(judge_name, ())))
                stack.callback(judge.close)
            if here.first:
                needs = [replace(need, gpus=gpus.get(name, ())) for name in names]
                teachers = start_teachers(teachers, runtime, needs, stack)
            policy = load_policy(job, checkpoint, reader, objective)
            adversary = None
            if objective.uses_discriminator:
                base = choose_base(job, checkpoint, reader, policy.reference)
                adversary = load_adversary(job, base, reader, objective)
        others = [*([judge_name] if judge_name is not None else []), *names]
        sleepers = find_sleepers(runtime, job.stage, others)
        own = make_own_rewards(job, objective, functions, judge) if here.first else None
        yield RilModels(checkpoint, reader, policy, adversary, engine, judge, tuple(teachers), own, rank > 0, sleepers)


def open_functions(job: Job, objective: Objective) -> RewardFunctions | None:
    """Returns the functions of `ril.rewards`, started; None if it has none. Raises Failure if one cannot be loaded."""
    if not (own := [one for one in objective.functions if one not in objective.rubrics]):
        return None
    code = job.block(Ril).reward_code
    job.input(code)  # it is there, and DVC watches it
    return RewardFunctions(own, job.root, code, job.store)


def make_own_rewards(
    job: Job, objective: Objective, functions: RewardFunctions | None, judge: Engine | None
) -> OwnRewards | None:
    """Returns all of `ril.rewards`; None if it has no entry beside the paper's."""
    if not objective.functions:
        return None
    rubrics = [RubricJudge(job, judge, one) for one in objective.rubrics] if judge is not None else []
    return OwnRewards(objective.functions, functions, rubrics)


def find_served_rank(block: Ril, runtime: Runtime) -> int:
    """Returns the rank of the student's adapter if its engine applies it, 0 if the engine gets merged weights.

    Beside quantized weights it gets these, rounded, with the adapter merged: its own weights are not rounded.
    """
    rank = block.lora.rank if block.lora and block.lora.quantization == "none" else 0
    return rank if runtime.select_transfer(rank, torch.cuda.is_available()) == "adapter" else 0


def find_sleepers(runtime: Runtime, stage: str, others: Sequence[str]) -> tuple[str, ...]:
    """Returns the entries of `models` whose engines sleep while the ranks compute: of the student and `others`."""
    uses = {model: find_gpu_use(runtime, stage, model) for model in ("student", *others)}
    return tuple(model for model, use in uses.items() if use is not None and use.sharing == "sleep")


def load_policy(job: Job, checkpoint: Checkpoint, reader: Reader, objective: Objective) -> Policy:
    """Loads the student and its reference model, both from the warm-started checkpoint (Algorithm 2, line 1).

    With `ril.lora` the student is the reference with an adapter, and both share one copy of the weights, which may be
    quantized.
    """
    block, runtime = job.block(Ril), job.block(Runtime)
    reference = load_network(checkpoint, reader, runtime, get_quantization(block.lora))
    reference.model.requires_grad_(False)
    shards = shard_reference(reference, runtime, objective)
    if shards is not None and get_ranks().first:
        job.progress.say(explain_config(job.name, "the reference", shards.config))
    if block.lora:
        student = reference.add_adapter("student", block.lora, job.seed("adapter"))
    else:
        student = load_network(checkpoint, reader, runtime)
        if block.freeze_vision:
            student.freeze_vision()
        student.freeze_parts(block.frozen_parts)
    trainer = Trainer(student.trained, block, runtime)
    if shards is None:
        reference.model.to(student.device)
    return Policy(student, reference, trainer, block, objective, PaddingGroups(reader), shards)


def shard_reference(reference: Network, runtime: Runtime, objective: Objective) -> FrozenShards | None:
    """Divides the weights of the reference over the ranks if `runtime.reference` says so; else returns None."""
    alone = get_ranks().count == 1
    if runtime.reference == "replicated" or (runtime.reference == "sharded" and alone):
        return None
    return FrozenShards(reference.model, runtime, reference.head.weight if objective.has_full_kl else None)


def choose_base(job: Job, checkpoint: Checkpoint, reader: Reader, reference: Network) -> Network:
    """Returns the model that becomes the discriminator: with an adapter the reference, if it has the same precision."""
    lora = job.block(DiscriminatorBlock).lora
    if lora and lora.quantization == reference.quantization:
        return reference
    return load_network(checkpoint, reader, job.block(Runtime), get_quantization(lora))


def load_adversary(job: Job, network: Network, reader: Reader, objective: Objective) -> Adversary:
    """Loads the pre-trained discriminator, with a trainer at the loop's constant learning rate.

    `network` is what `choose_base` returns.
    """
    block, loop = job.block(DiscriminatorBlock), job.block(Ril)
    if block.lora:
        network = network.add_adapter("discriminator", block.lora, seed=0)
    discriminator = DiscriminatorModel(network, seed=0, sees=block.sees)
    discriminator.load(job.input("data/discriminator"))
    constant = Schedule(
        steps=loop.steps,
        learning_rate=loop.discriminator_learning_rate,
        weight_decay=loop.weight_decay,
        max_grad_norm=loop.max_grad_norm,
        spike_factor=loop.spike_factor,
        skip_spikes=loop.skip_spikes,
        tokens_per_pack=loop.tokens_per_pack,
    )
    settings = AdversarySettings(
        objective.discriminator_loss,
        objective.discriminator_update,
        loop.inner_updates,
        loop.discriminator_learning_rate,
        block.pause_above,
        objective.degenerate,
        objective.negatives,
    )
    together = objective.discriminator_loss == "bradley_terry"
    collator = DiscriminatorCollator(reader, loop.tokens_per_pack, block.sees, together)
    trainer = Trainer(discriminator.trained, constant, job.block(Runtime))
    return Adversary(discriminator, trainer, collator, settings, SpreadCheck(block.min_logit_spread))
