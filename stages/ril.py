"""RIL: trains the student by reinforcement and imitation learning (Algorithm 2).

Reads    data/warm_start, data/discriminator, data/pool, data/questions, data/model/<judge>, with ril.objective: opd
         data/model/<entry of ril.distillation>, the file or folder ril.reward_code; params: ril, discriminator,
         verdict, seed
Writes   data/ril/model: the student as a Hugging Face checkpoint (with ril.keep: both, the last one in data/ril/last);
         data/ril/samples: responses with rewards; data/ril/validation: answers, with ril.validation_samples;
         reports/ril/{metrics.json,history.csv,validation.csv,rejects.jsonl}
Run      dvc repro ril

Inference needs only the student; discriminator, judge and teachers are unused (§1).
"""

from collections.abc import Iterable, Sequence
from functools import partial

from stages.adversary.diagnostics import check_saturation
from stages.adversary.discriminator_model import Text
from stages.config.discriminator import Discriminator as DiscriminatorBlock
from stages.config.objective import Objective
from stages.config.ril import Ril
from stages.corpora.rows import IMITATION_SPLITS, Question, find_questions, read_questions
from stages.groups.response import Response
from stages.job.epochs import pick_places
from stages.job.job import Job
from stages.job.metric_names import STEP
from stages.job.rejects import Reject, make_too_long_rejects
from stages.loop.models import RilModels, open_models
from stages.loop.outputs import make_sample_rows, write_outputs
from stages.loop.rollouts import Rollouts
from stages.loop.validation import Validation
from stages.policy.metrics import reward_metrics
from stages.policy.rewards import score_groups
from stages.responses.draws import StoredPool
from stages.training.ahead import preparing_beside
from stages.training.state import TrainingState
from stages.training.trainer import learning_rate


def run(job: Job) -> None:
    """Trains and writes the student, and lists the questions that exceed its context.

    Raises NonFinite when a number of the loop is NaN or infinite, RuntimeError when the share of failed verdicts in a
    step exceeds verdict.max_failed_share, Failure when a function of ril.rewards cannot be loaded or fails too often,
    TooManyRejects when the share of questions that are too long exceeds ril.max_reject_share, Failure when a model of
    ril.distillation does not have the student's tokenizer.
    """
    block = job.block(Ril)
    objective = block.resolve(job.block(DiscriminatorBlock))
    if block.kl_weight == 0 and not objective.distils:
        job.progress.say("ril.kl_weight is 0: in the paper's Table 5b the student then falls far below its start")
    # Algorithm 2, line 1: policy and reference model start as the SFT student
    with open_models(job, objective) as models:
        train(job, block, objective, models)


def train(job: Job, block: Ril, objective: Objective, models: RilModels) -> None:
    """Trains with Algorithm 2 and writes what stage `ril` writes."""
    pool = StoredPool(job.input("data/pool"))
    policy, adversary = models.policy, models.adversary
    questions, validation_questions, rejects = read_usable_questions(job, models, pool)
    state = TrainingState(job, models.trainers)
    history, samples = state.rows("history"), state.rows("samples")
    functions = [one.title for one in objective.functions]
    rollouts = Rollouts(job, models, state, pool)
    validation = Validation(job, models, state, validation_questions)
    if state.first or policy.student.quantization != "none":  # else the engine has the student's weights
        models.push_weights()
    if not state.first:
        validation.run(0)

    for step in state.iter_steps(block.steps, "RIL"):
        # line 2: a batch of questions; the engine holds the weights of the old policy
        places = pick_places(len(questions), block.questions_per_step, step, job.seed("order"))
        batch = [questions[place] for place in places]

        # lines 3 and 4: G student responses, sent to the judge as they finish, and G teacher responses
        groups = rollouts.collect(step, batch)

        # line 5: the discriminator trains on all 2G and scores them; a judge on a server runs concurrently, and a
        # thread decodes the images of line 7
        logits: list[float] | None = None
        metrics: dict[str, float | None] = {}
        with preparing_beside(partial(policy.open_prompts, models.reader, batch, groups)) as take_prompts:
            if adversary is not None:
                with job.measure_time("discriminator"):
                    logits, metrics = adversary.learn_and_score(*pair_with_texts(batch, groups))
            with job.measure_time("reference"):
                prepared = policy.prepare(take_prompts(), batch, groups)
        with job.measure_time("judge"):
            groups = rollouts.judge(step, groups)

        # line 6: rewards and advantages of all 2G from discriminator, judge and functions of ril.rewards
        scored = score_groups(groups, logits, objective)
        for question, rewards in zip(batch, scored, strict=True):
            values = [value for one in rewards for value in (one.reward, one.advantage)]
            state.guard.check("reward", values, [question.id])

        # line 7: the policy trains on all 2G (Eq. 2)
        with job.measure_time("update"):
            rewarded = [one.add_rewards(scored) for one in prepared]
            updated = policy.update(rewarded, learning_rate(block, step))
        with job.measure_time("sync"):
            models.wake_engines()
            job.add_measurements(bytes_to_engine=models.push_weights())

        of_rewards = reward_metrics(groups, scored, functions, objective)
        history.append({STEP: step + 1, **of_rewards, **metrics, **updated})
        state.images |= {question.id: question.images for question in batch[: block.samples_per_step]}
        if alarm := check_saturation(history, job.block(DiscriminatorBlock).alarm_steps):
            job.progress.say(f"step {step + 1}: {alarm}")
        samples += make_sample_rows(step + 1, batch[: block.samples_per_step], scored, functions)
        if validation.is_due(step + 1):
            validation.run(step + 1)

    write_outputs(job, models, state, rejects)


def read_usable_questions(
    job: Job, models: RilModels, pool: Iterable[str]
) -> tuple[Sequence[Question], Sequence[Question], list[Reject]]:
    """Returns the pool questions that fit every context, the validation questions, and rejects with reasons.

    The contexts are the student's, and those of the teachers that score its answers.

    A validation question that is too long is kept and counts as wrong.
    """
    block, folder = job.block(Ril), job.input("data/questions")
    by_id = find_questions(folder, IMITATION_SPLITS, pool)
    questions, validation = by_id.select(pool), read_questions(folder, "validation")
    longest = block.sampling.max_tokens
    reasons = {
        one.id: reason
        for one in questions
        if (reason := models.explain_refusal(one) or models.explain_unscored(one, longest))
    }
    rejects = make_too_long_rejects(job.name, reasons, block.group, len(questions), block.max_reject_share)
    rejects += [
        Reject(one.id, 0, 1, "refused", reason) for one in validation if (reason := models.explain_refusal(one))
    ]
    if rejects:
        job.progress.say(
            f"{job.name}: {len(rejects)} questions are too long; reasons in {job.reports / 'rejects.jsonl'}"
        )
    return by_id.select(name for name in pool if name not in reasons), validation, rejects


def pair_with_texts(
    questions: Sequence[Question], groups: Sequence[Sequence[Response]]
) -> tuple[list[Response], list[Text]]:
    """Returns all responses of the step in order, each with its discriminator input."""
    pairs = [
        (one, Text(one.text, question.id, question.messages, question.images))
        for question, group in zip(questions, groups, strict=True)
        for one in group
    ]
    return [one for one, _ in pairs], [text for _, text in pairs]
