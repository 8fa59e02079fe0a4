"""Deliberate faults over stages/: each a text of the source, what stands in its place, and the tests that see it.

tests/mutants/run.py puts them in. The first 21 are those that no test saw before the loop was tested as a loop.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault."""

    file: str
    text: str  # stands exactly once in the file
    replacement: str
    what: str
    tests: tuple[str, ...]  # ids of pytest; the first that fails ends the trial


RIL, POOL, WARM, DISC = (f"stages/{name}.py" for name in ("ril", "pool", "warm_start", "discriminator"))
ROLLOUTS, MODELS, VALIDATION, OUTPUTS = (
    f"stages/loop/{name}.py" for name in ("rollouts", "models", "validation", "outputs")
)
POLICY, BATCH, LOSS, REWARDS, METRICS = (
    f"stages/policy/{name}.py" for name in ("policy", "batch", "loss", "rewards", "metrics")
)
ADVERSARY, MODEL, PROMPT, DIAGNOSTICS = (
    f"stages/adversary/{name}.py" for name in ("adversary", "discriminator_model", "prompt", "diagnostics")
)
PACK, HEAD, LOG_PROBS = (f"stages/groups/{name}.py" for name in ("pack", "head", "log_probs"))
TRAINER, SFT, STATE, PASSES, RANKS = (
    f"stages/training/{name}.py" for name in ("trainer", "sft", "state", "passes", "ranks")
)
READER, CHAT, FAMILY, QWEN = (f"stages/vlm/{name}.py" for name in ("reader", "chat", "family", "qwen2_5_vl"))
JUDGE, QUEUE = "stages/judging/judge.py", "stages/judging/queue.py"
KEY, ANSWERS, STORE, REQUESTED, TEMPLATE, DRAWS = (
    f"stages/responses/{name}.py" for name in ("key", "answers", "store", "requested", "template", "draws")
)
EPOCHS, SEEDS = "stages/job/epochs.py", "stages/job/seeds.py"
QUESTIONS, EVALUATE, VERDICT = "stages/questions.py", "stages/evaluate.py", "stages/verdict.py"
SCORING, VERDICTS, AGGREGATE, SCORES = (
    "stages/corpora/scoring.py",
    "stages/benchmarks/verdicts.py",
    "stages/benchmarks/aggregate.py",
    "stages/benchmarks/scores.py",
)

IN_LOOP = ("tests/loop",)
IN_RIL = ("tests/loop/test_ril.py::test_the_loop_does_what_the_paper_says[qwen2_5_vl]",)
T = "tests/stages/"
T_LOSS, T_UPDATE, T_REWARDS = (f"{T}policy/test_{name}.py::" for name in ("loss", "update", "rewards"))
T_ADVERSARY, T_DISC = (f"{T}adversary/test_{name}.py::" for name in ("adversary", "discriminator"))
T_PACK, T_HEAD, T_RANKS = f"{T}groups/test_pack.py::", f"{T}groups/test_head.py::", f"{T}training/test_ranks.py::"
T_GOLDEN, T_CLOSED = "tests/conformance/test_golden.py::", "tests/conformance/test_closed_form.py::"
T_GUARDS, T_READER, T_JUDGE = "tests/traps/test_guards.py::", f"{T}vlm/test_reader.py::", f"{T}judging/test_judge.py::"
T_POOL, T_QUESTIONS, T_EVALUATE = f"{T}test_pool.py::", f"{T}corpora/test_questions.py::", f"{T}test_evaluate.py::"
T_KEY, T_ANSWERS, T_STORE = (f"{T}responses/test_{name}.py::" for name in ("key", "answers", "store"))
T_TRAINER, T_MODELS, T_ROLLOUTS, T_VALIDATION = (
    f"{T}{name}.py::"
    for name in ("training/test_trainer", "loop/test_models", "loop/test_rollouts", "loop/test_validation")
)
T_PASSES = f"{T}training/test_passes.py::"
T_STAGE_D = f"{T}test_discriminator.py::"
T_BENCH = f"{T}benchmarks/test_"
T_STATE = f"{T}training/test_state.py::"
T_JOB = f"{T}job/test_job.py::"

FAULTS = (
    # --- seen by no test before ---------------------------------------------------------------------------------------
    Fault(DISC, "labels += [1.0] * count + [0.0] * count", "labels += [0.0] * count + [1.0] * count",
          "labels are flipped in D's pre-training", IN_LOOP),
    Fault(ROLLOUTS, "reader.chat.encode_response", "reader.chat.encode_text",
          "teacher rows have no end token", (f"{T_ROLLOUTS}test_a_group_has_its_own_answers_in_order_then_as_many_of_the_teachers",)),
    Fault(WARM, "targets = [tuple(reader.chat.encode_response(", "targets = [tuple(reader.chat.encode_text(",
          "targets of the warm start have no end token", IN_LOOP),
    Fault(RIL, 'with job.measure_time("sync"):\n            models.engine.update_weights(policy.iter_weights())',
          'with job.measure_time("sync"):\n            pass', "weights never reach the engine", IN_RIL),
    Fault(ROLLOUTS, 'self._job.seed("draw", step, question.id)', 'self._job.seed("draw", 0, question.id)',
          "every step draws the same teacher answers to a question", (f"{T_ROLLOUTS}test_every_step_and_every_question_is_sampled_and_drawn_anew",)),
    Fault(ROLLOUTS, "self._pool[question.id], self._block.group, seed",
          "self._pool[question.id], self._block.group // 2, seed", "half as many teacher answers", (f"{T_ROLLOUTS}test_a_group_has_its_own_answers_in_order_then_as_many_of_the_teachers",)),
    Fault(MODELS, "return Policy(student, reference, trainer", "return Policy(student, student, trainer",
          "the reference is the current student", (f"{T_MODELS}test_the_reference_is_another_model_and_the_tower_is_trained_on_demand_only",)),
    Fault(ROLLOUTS, "answer.finish_reason, answer.verdict)", "answer.finish_reason, 1)",
          "every verdict on a teacher is right", (f"{T_ROLLOUTS}test_a_group_has_its_own_answers_in_order_then_as_many_of_the_teachers",)),
    Fault(RIL, "scored = score_groups(groups, logits, objective)",
          "scored = score_groups(groups, logits and [*logits[1:], logits[0]], objective)",
          "D's logits belong to the next rows", IN_RIL),
    Fault(MODELS, "        loop.inner_updates,\n", "        1,\n", "D takes one step whatever mu is", (f"{T_MODELS}test_the_discriminator_is_the_pre_trained_one_with_settings_of_its_own",)),
    Fault(POLICY, "for one in zip(own, prompts, caches, ids, strict=True)]",
          "for one in zip(own, prompts[::-1], caches, ids, strict=True)]",
          "rewarded rows stand under the prompt of another question", IN_RIL),
    Fault(MODELS, '    discriminator.load(job.input("data/discriminator"))\n', '    job.input("data/discriminator")\n',
          "the pre-trained D is not loaded", (f"{T_MODELS}test_the_discriminator_is_the_pre_trained_one_with_settings_of_its_own",)),
    Fault(RIL, "policy.update(rewarded, learning_rate(block, step))", "policy.update(rewarded, block.learning_rate)",
          "the loop has no schedule of the rate", IN_RIL),
    Fault(MODELS, "        loop.discriminator_learning_rate,\n        block.pause_above",
          "        loop.learning_rate,\n        block.pause_above", "D learns at the student's rate", (f"{T_MODELS}test_the_discriminator_is_the_pre_trained_one_with_settings_of_its_own",)),
    Fault(ROLLOUTS, 'self._job.seed("sample", step, question.id)', 'self._job.seed("sample", 0, question.id)',
          "every step samples with the same seed", (f"{T_ROLLOUTS}test_every_step_and_every_question_is_sampled_and_drawn_anew",)),
    Fault(VALIDATION, "key=lambda row: (row[VALIDATION], -row[STEP])", "key=lambda row: (-row[VALIDATION], -row[STEP])",
          "the worst checkpoint is kept", (f"{T_VALIDATION}test_the_first_of_the_best_is_kept",)),
    Fault(RIL, "Text(one.text, question.id", "Text(group[0].text, question.id",
          "D sees a question's first student text in every row", IN_RIL),
    Fault(MODELS, "    if block.freeze_vision:\n        student.freeze_vision()\n",
          '    block = block.model_copy(update={"freeze_vision": False})\n', "the loop trains the vision tower", (f"{T_MODELS}test_the_reference_is_another_model_and_the_tower_is_trained_on_demand_only",)),
    Fault(QUEUE, "JudgeVerdict(None, answer.finish_reason, None) if answer.failed",
          "JudgeVerdict(0, answer.finish_reason, None) if answer.failed", "a failed reply of the judge counts as wrong",
          (f"{T_ROLLOUTS}test_an_answer_has_the_judges_verdict_on_it_and_none_where_the_judge_failed",)),
    Fault(QUEUE, "question.text, question.answer, row.text", "question.text, row.text, row.text",
          "the judge gets the candidate as the reference", (f"{T_ROLLOUTS}test_an_answer_has_the_judges_verdict_on_it_and_none_where_the_judge_failed",)),
    Fault(VALIDATION, "is_correct(answers[index][0].text, question.answer) for index, question in enumerate(asked)",
          "is_correct(answers[index][0].text, asked[index - 1].answer) for index in range(len(asked))",
          "validation compares with the reference before", (f"{T_VALIDATION}test_answers_are_greedy_and_compared_with_their_own_reference",)),
    # --- the loop: data, order, schedules, checkpoints ----------------------------------------------------------------
    Fault(RIL, 'block.questions_per_step, step, job.seed("order"))', 'block.questions_per_step, 0, job.seed("order"))',
          "every step has the same questions", IN_RIL),
    Fault(RIL, 'read_questions(folder, "validation")\n', 'read_questions(folder, "imitation")\n',
          "validation asks the training questions", IN_RIL),
    Fault(RIL, "if validation.is_due(step + 1):", "if validation.is_due(step):", "validation comes a step late", IN_RIL),
    Fault(RIL, "rewarded = [one.add_rewards(scored) for one in prepared]",
          "rewarded = [one.add_rewards(scored[::-1]) for one in prepared[::-1]]",
          "a question trains on the rows of another", IN_RIL),
    Fault(ROLLOUTS, "sampling, count = self._block.sampling, self._block.group",
          "sampling, count = self._block.sampling, self._block.group + 1", "G + 1 student answers", (f"{T_ROLLOUTS}test_every_step_and_every_question_is_sampled_and_drawn_anew",)),
    Fault(ROLLOUTS, 'seed("sample", step, question.id) % 2**62', 'seed("sample", step) % 2**62',
          "all questions of a step are sampled with one seed", (f"{T_ROLLOUTS}test_every_step_and_every_question_is_sampled_and_drawn_anew",)),
    Fault(ROLLOUTS, "verdict=verdicts[number, place]", "verdict=verdicts[number, 0]",
          "every answer gets the verdict on its group's first", (f"{T_ROLLOUTS}test_an_answer_has_the_judges_verdict_on_it_and_none_where_the_judge_failed",)),
    Fault(ROLLOUTS, "ordered = [groups[number] for number in range(len(questions))]", "ordered = list(groups.values())",
          "groups stand in the order of their arrival", (f"{T_ROLLOUTS}test_a_group_has_its_own_answers_in_order_then_as_many_of_the_teachers",)),
    Fault(ROLLOUTS, "(recorded := self._state.read_record(step)) is not None", "(recorded := None) is not None",
          "a resumed step is sampled anew",
          (f"{T_ROLLOUTS}test_a_step_that_was_recorded_is_not_sampled_again_and_judged_once",)),
    Fault(ROLLOUTS, 'and not recorded["judged"]:', "and recorded:", "a resumed step is judged again",
          (f"{T_ROLLOUTS}test_a_step_that_was_recorded_is_not_sampled_again_and_judged_once",)),
    Fault(ROLLOUTS, "answer.token_ids, answer.finish_reason, None", 'answer.token_ids, "stop", None',
          "cut student answers count as whole", (f"{T_ROLLOUTS}test_a_group_has_its_own_answers_in_order_then_as_many_of_the_teachers",)),
    Fault(ROLLOUTS, "return Response(answer.teacher, answer.text,", "return Response(STUDENT, answer.text,",
          "teacher rows are labelled as the student's", (f"{T_ROLLOUTS}test_a_group_has_its_own_answers_in_order_then_as_many_of_the_teachers",)),
    Fault(VALIDATION, "greedy = Sampling(temperature=0.0, max_tokens=self._block.sampling.max_tokens)",
          "greedy = self._block.sampling", "validation samples instead of decoding greedily", (f"{T_VALIDATION}test_answers_are_greedy_and_compared_with_their_own_reference",)),
    Fault(VALIDATION, "or step == self._block.steps", "or step == 0", "the last step is not validated", (f"{T_VALIDATION}test_answers_are_greedy_and_compared_with_their_own_reference",)),
    Fault(TRAINER, "tensor.detach().cpu().clone() for", "tensor.detach().cpu() for",
          "the best weights are an alias of those in training", (f"{T_TRAINER}test_a_copy_of_the_weights_stays_while_training_goes_on",)),
    Fault(OUTPUTS, "best = now if state.copy is None else state.copy", "best = now",
          "the last weights are written as the best", IN_RIL),
    Fault(MODELS, "loop.tokens_per_pack, block.sees, together)", "loop.tokens_per_pack, block.sees, False)",
          "pairs of one question are split over packs", (f"{T_MODELS}test_the_discriminator_is_the_pre_trained_one_with_settings_of_its_own",)),
    Fault(MODELS, "seed=0, sees=block.sees)", 'seed=0, sees="response")', "D of the loop sees the response alone",
          (f"{T_MODELS}test_the_discriminator_is_the_pre_trained_one_with_settings_of_its_own",)),
    Fault(TRAINER, 'group["lr"] = rate', 'group["lr"] += 0 * rate', "the optimizer ignores the rate of the step",
          (f"{T_TRAINER}test_a_step_is_adamw_on_clipped_gradients_at_the_rate_of_the_step",)),
    Fault(TRAINER, "return schedule.learning_rate * (step + 1) / schedule.warmup_steps",
          "return schedule.learning_rate * step / schedule.warmup_steps", "the warm-up begins at 0", (f"{T_TRAINER}test_rates_rise_to_the_peak_and_fall_to_the_end",)),
    Fault(TRAINER, "done = (step - schedule.warmup_steps) /", "done = step /", "the decay begins during the warm-up",
          (f"{T_TRAINER}test_rates_rise_to_the_peak_and_fall_to_the_end",)),
    Fault(TRAINER, "nn.utils.clip_grad_norm_(self._trained, self._max_grad_norm)",
          "nn.utils.clip_grad_norm_(self._trained, math.inf)", "gradients are not clipped", (f"{T_TRAINER}test_a_step_is_adamw_on_clipped_gradients_at_the_rate_of_the_step",)),
    Fault(TRAINER, "weight_decay=schedule.weight_decay", "weight_decay=0.0", "no weight decay", (f"{T_TRAINER}test_a_step_is_adamw_on_clipped_gradients_at_the_rate_of_the_step",)),
    Fault(TRAINER, "betas=(0.9, 0.999)", "betas=(0.9, 0.99)", "another beta 2 of AdamW", (f"{T_TRAINER}test_a_step_is_adamw_on_clipped_gradients_at_the_rate_of_the_step",)),
    # --- D: its pre-training and its steps ----------------------------------------------------------------------------
    Fault(DISC, 'block.questions_per_step, step, job.seed("order"))', 'block.questions_per_step, 0, job.seed("order"))',
          "every step of D has the same questions", IN_LOOP),
    Fault(DISC, 'job.seed("draw", step, training[place].question_id)', 'job.seed("draw", 0, training[place].question_id)',
          "every step of D draws the same texts of a question", IN_LOOP),
    Fault(DISC, 'if row["finish_reason"] == "stop" and row["response"]:', 'if row["response"]:',
          "D is pre-trained on cut student texts", (f"{T_STAGE_D}test_cut_and_empty_texts_of_both_sides_are_left_out",)),
    Fault(DISC, "done = trainer.step(learning_rate(block, step))", "done = trainer.step(block.learning_rate)",
          "D's pre-training has no schedule of the rate", IN_LOOP),
    Fault(DISC, "training = [question for question in texts if question.question_id not in held_out]",
          "training = list(texts)", "D trains on the held-out questions", (f"{T_STAGE_D}test_no_held_out_question_is_trained_on_and_the_split_is_that_of_the_seed",)),
    Fault(DISC, "metrics = measure_held_out(adversary, held_out)", "metrics = measure_held_out(adversary, training)",
          "the held-out metrics are those of the training questions", (f"{T_STAGE_D}test_the_measures_are_those_of_the_held_out_questions",)),
    Fault(DISC, "names.HELD_OUT_ACCURACY: (shares[STUDENT] + acc_teacher) / 2",
          "names.HELD_OUT_ACCURACY: shares[STUDENT]", "D's accuracy is that on the student", (f"{T_STAGE_D}test_both_sides_weigh_the_same_in_the_accuracy",)),
    Fault(ADVERSARY, "labels = [float(one.source == STUDENT) for one, _ in pairs]",
          "labels = [float(one.source != STUDENT) for one, _ in pairs]", "labels are flipped in the loop",
          (f"{T_ADVERSARY}test_it_pauses_where_it_is_too_good_and_learns_from_pairs",)),
    Fault(ADVERSARY, 'if self.settings.update == "before_scoring":\n            metrics = self.learn(responses, texts)\n'
          "        logits = self.score(texts)\n", 'logits = self.score(texts)\n'
          '        if self.settings.update == "before_scoring":\n            metrics = self.learn(responses, texts)\n',
          "D scores before it learns", (f"{T_ADVERSARY}test_the_order_of_learning_and_scoring",)),
    Fault(ADVERSARY, "start = sum(map(len, seen))", "start = 0", "later packs get the labels of the first", (f"{T_ADVERSARY}test_the_packing_of_texts_changes_no_gradient",)),
    Fault(MODEL, "self.score(hidden[pack.last])", "self.score(hidden[pack.last - 1])",
          "D reads the token before the last", (f"{T_CLOSED}test_c10_the_logit_is_read_at_the_last_token_of_each_text",)),
    Fault(MODEL, 'reduction="sum") / texts', 'reduction="sum") / len(logits)', "every pack of D weighs the same",
          (f"{T_ADVERSARY}test_the_packing_of_texts_changes_no_gradient",)),
    Fault(MODEL, "softplus(logits[None, :] - logits[:, None])", "softplus(logits[:, None] - logits[None, :])",
          "the pairwise loss has the wrong sign", (f"{T_GOLDEN}test_c11_bradley_terry",)),
    Fault(MODEL, "& (questions[:, None] == questions[None, :])", "", "pairs are made across questions",
          (f"{T_GOLDEN}test_c11_bradley_terry", f"{T_ADVERSARY}test_it_pauses_where_it_is_too_good_and_learns_from_pairs")),
    Fault(PROMPT, "(*reader.chat.encode_text(text), *closing)", "(*reader.chat.encode_text(text), *closing[:1])",
          "the closing tag is cut", (f"{T_DISC}test_response_is_fenced_and_nothing_of_the_turn_is_left_in_it",)),
    Fault(DIAGNOSTICS, "names.DISC_LOGIT_GAP_OF.format(name): float(student.mean() - own.mean())",
          "names.DISC_LOGIT_GAP_OF.format(name): float(student.mean() - teacher.mean())",
          "a teacher's gap is that of all teachers", (f"{T_ADVERSARY}test_what_is_told_apart_is_told_by_teacher",)),
    # --- rewards and advantages ---------------------------------------------------------------------------------------
    Fault(REWARDS, "return int(logit < 0.0)", "return int(logit <= 0.0)", "a logit of 0 earns similarity",
          (f"{T_CLOSED}test_c10_exactly_zero_earns_nothing",)),
    Fault(REWARDS, "mean = sum(rewards) / len(rewards)", "mean = sum(rewards) / max(1, len(rewards) - 1)",
          "the mean of the group divides by one less", (f"{T_LOSS}test_check_values_of_the_paper",)),
    Fault(REWARDS, "for value in centred) / (len(centred) - 1))", "for value in centred) / len(centred))",
          "GRPO's deviation divides by n", (f"{T_REWARDS}test_standard_deviation",)),
    Fault(REWARDS, 'if row.finish_reason != "stop" and objective.truncated != "as_judged":', "if False:",
          "a cut answer earns its verdict", (f"{T_LOSS}test_a_cut_answer_has_no_answer_reward",)),
    Fault(REWARDS, "objective.similarity_weight * s + objective.answer_weight * a for s, a in",
          "objective.answer_weight * s + objective.similarity_weight * a for s, a in", "the reward's weights are swapped",
          (f"{T_REWARDS}test_weights_and_gate",)),
    Fault(REWARDS, "pairs = [(row, logit) for row, logit in pairs if row.verdict is not None]", "pairs = list(pairs)",
          "a failed verdict counts as wrong", (f"{T_LOSS}test_a_failed_verdict_leaves_group_and_baseline",)),
    Fault(REWARDS, "(rows[at].source == STUDENT) == student]", "rows[at].source]",
          "both sides share the baseline per source", (f"{T_REWARDS}test_baselines",)),
    Fault(REWARDS, "[next(rest) for _ in group], objective)", "[next(rest) for _ in group][::-1], objective)",
          "the logits of a group are reversed", (f"{T_REWARDS}test_every_logit_belongs_to_its_row",)),
    # --- loss and update ----------------------------------------------------------------------------------------------
    Fault(LOSS, "gap = (reference - log_probs).clamp(max=60.0)", "gap = (log_probs - reference).clamp(max=60.0)",
          "k3 estimates the other direction", (f"{T_GOLDEN}test_c3_kl_estimates",)),
    Fault(LOSS, "terms = inputs.kl_weight * kl_term(log_probs, inputs) - gain",
          "terms = -inputs.kl_weight * kl_term(log_probs, inputs) - gain", "the KL term has the wrong sign",
          (f"{T_LOSS}test_loss_and_gradient_equal_the_formula",)),
    Fault(LOSS, "ratio = (log_probs - old).exp()\n", "ratio = (old - log_probs).exp()\n", "the ratio is inverted",
          (f"{T_LOSS}test_loss_and_gradient_equal_the_formula",)),
    Fault(LOSS, "ratio.clamp(1 - inputs.clip_low, 1 + inputs.clip_high)",
          "ratio.clamp(1 - inputs.clip_high, 1 + inputs.clip_low)", "the clip bounds are swapped",
          (f"{T_GOLDEN}test_c1_loss_and_gradient",)),
    Fault(LOSS, "return torch.minimum(ratio * advantages", "return torch.maximum(ratio * advantages",
          "the larger side of the clip counts", (f"{T_LOSS}test_loss_and_gradient_equal_the_formula",)),
    Fault(LOSS, "mean = (gaps / lengths).detach()", "mean = gaps.detach()", "GSPO's ratio is the product",
          (f"{T_GOLDEN}test_c1_loss_and_gradient", f"{T_UPDATE}test_at_mu_above_one_the_clip_acts")),
    Fault(LOSS, "trainer - engine, torch.zeros_like(trainer)", "engine - trainer, torch.zeros_like(trainer)",
          "the correction for the engine is inverted", (f"{T_UPDATE}test_a_correction_scales_student_rows_only",)),
    Fault(LOSS, "terms.sum() / inputs.normaliser, {", "terms.mean(), {", "the loss is the mean over a pack's tokens",
          (f"{T_LOSS}test_loss_and_gradient_equal_the_formula",)),
    Fault(POLICY, "self.block.sampling.max_tokens if constant else 1", "1", "the loss is not divided by max_tokens",
          (f"{T_UPDATE}test_the_papers_update_is_equation_2",)),
    Fault(POLICY, "get_ranks().sum(sum(len(group.responses) for group in kept))",
          "sum(len(group.responses) for group in kept)", "each rank divides by its own rows",
          (f"{T_UPDATE}test_the_rows_of_all_ranks_divide_the_loss",)),
    Fault(POLICY, "                if inner == 0:\n                    old.append(log_probs)",
          "                old[number : number + 1] = [log_probs]", "the old log-probabilities follow each update",
          (f"{T_UPDATE}test_several_inner_updates_run_no_pass_for_old_log_probs",)),
    Fault(POLICY, "states = predicting_states(self.reference, pack, features)",
          "states = predicting_states(self.student, pack, features)", "the reference pass runs the student",
          (f"{T_UPDATE}test_the_papers_update_is_equation_2",)),
    Fault(POLICY, "weights = 1.0 / count_tokens(response)[response]",
          "weights = 1.0 / count_tokens(response).max().expand(len(response))", "a row's mean divides by the longest row",
          (f"{T_UPDATE}test_a_mean_over_each_row_divides_by_its_own_length",)),
    Fault(POLICY, 'teacher_kl == "same" else ~batch.student_tokens', 'teacher_kl == "same" else batch.student_tokens',
          "the teachers' KL applies to the student", (f"{T_UPDATE}test_kl_has_its_own_treatment_of_teacher_rows",)),
    Fault(POLICY, "loss, number == len(batches) - 1, owners", "loss, True, owners",
          "every pack is marked as the step's last", (f"{T_UPDATE}test_the_last_pack_of_each_inner_update_is_marked",)),
    Fault(BATCH, "self.add(for_source(name, TEACHERS), values[~batch.student_tokens])",
          "self.add(for_source(name, TEACHERS), values[batch.student_tokens])", "the teachers' KL is the student's",
          (f"{T_UPDATE}test_each_source_has_the_measures_of_its_own_tokens",)),
    Fault(METRICS, "names.STUDENT_SIMILARITY: _mean([one.similarity for one in by_student])",
          "names.STUDENT_SIMILARITY: _mean([one.similarity for one in kept])",
          "the student's similarity is that of all rows", (f"{T}policy/test_metrics.py::test_every_source_has_the_means_of_its_own_rows",)),
    # --- packs and log-probabilities ----------------------------------------------------------------------------------
    Fault(PACK, "predicts += [prompt_end, *range(place, place + count - 1)]",
          "predicts += [prompt_end + 1, *range(place + 1, place + count)]", "a token is predicted by itself",
          (f"{T_PACK}test_log_probs_equal_the_plain_models",)),
    Fault(PACK, "following = int(group.prompt.positions.max()) + 1", "following = int(group.prompt.positions.max()) + 2",
          "positions skip one after the prompt", (f"{T_PACK}test_log_probs_equal_the_plain_models",)),
    Fault(PACK, "if start < len(groups):", "if start < len(groups) - 1:", "a last group alone in its pack is lost",
          (f"{T_PACK}test_every_row_is_packed_once",)),
    Fault(PACK, "owner += [responses] * count", "owner += [number_in_group] * count",
          "rows are counted anew in each group of a pack", (f"{T_PACK}test_every_row_is_packed_once",)),
    Fault(PACK, "return torch.tril((owner[None, :] < 0) | (owner[:, None] == owner[None, :]))",
          "return torch.ones(len(owner), len(owner), dtype=torch.bool).tril()", "a response sees those before it",
          (f"{T_PACK}test_a_response_sees_its_prompt_and_itself_only",)),
    Fault(PACK, "positions.append((following + torch.arange(count))", "positions.append((place + torch.arange(count))",
          "positions count from the start of the pack", (f"{T_PACK}test_packed_equals_one_row_at_a_time",)),
    Fault(HEAD, "slope /= context.temperature", "pass", "the gradient forgets the temperature",
          (f"{T_HEAD}test_values_and_gradients_are_those_of_full_softmax",)),
    Fault(HEAD, "torch.logaddexp(total[rows], sums)", "torch.maximum(total[rows], sums)",
          "the sum over the vocabulary is its largest tile", (f"{T_HEAD}test_values_and_gradients_are_those_of_full_softmax",)),
    Fault(LOG_PROBS, "return (ours.exp() * (ours - theirs)).sum(1)", "return (theirs.exp() * (theirs - ours)).sum(1)",
          "the exact KL has the other direction", (f"{T_HEAD}test_exact_kl_in_tiles_is_that_of_full_softmax",)),
    Fault(PASSES, "replace(pack, last=pack.last[:-1], groups=numbers)", "replace(pack, groups=numbers)",
          "D scores padding", (f"{T_PASSES}test_padding_adds_no_target_and_no_text",)),
    Fault(TRAINER, "self._engine.backward(loss * self._ranks if self._ranks > 1 else loss,",
          "self._engine.backward(loss,", "ranks are averaged instead of summed",
          (f"{T_TRAINER}test_a_part_of_the_loss_counts_for_all_ranks",)),
    Fault(SFT, ".sum() / response_tokens", ".mean()", "every pack of the warm start weighs the same",
          (f"{T_PASSES}test_the_warm_starts_loss_is_the_mean_over_all_target_tokens_of_the_step",)),
    Fault(SFT, "return trainer.step(learning_rate(schedule, step))", "return trainer.step(schedule.learning_rate)",
          "the warm start has no schedule of the rate", (f"{T_PASSES}test_the_warm_starts_loss_is_the_mean_over_all_target_tokens_of_the_step",)),
    Fault(WARM, "block.rows_per_step, step, job.seed())", "block.rows_per_step, 0, job.seed())",
          "every step of the warm start has the same rows", IN_LOOP),
    Fault(WARM, "zip(chosen, prompts, targets, strict=True)", "zip(chosen, prompts, [*targets[1:], targets[0]], strict=True)",
          "a question learns the target of the next", IN_LOOP),
    Fault(WARM, "    if block.freeze_vision:\n        network.freeze_vision()\n", "", "the warm start trains the tower",
          IN_LOOP),
    Fault(STATE, "            self.rows(name).extend(rows)\n", "            self.rows(name)\n",
          "a resumed stage forgets its curves", (f"{T_STATE}test_stopped_and_resumed_is_undisturbed",)),
    Fault(STATE, 'return int(loop["step"])', 'return int(loop["step"]) - 1', "a resumed stage repeats a step",
          (f"{T_STATE}test_stopped_and_resumed_is_undisturbed",)),
    # --- prompts and images -------------------------------------------------------------------------------------------
    Fault(READER, "            start += len(images)\n", "", "every prompt of a call gets the first images",
          (f"{T_READER}test_prompts_of_one_call_are_those_of_single_calls",)),
    Fault(FAMILY, "torch.cat([pixels.values for pixels in several])",
          "torch.cat([pixels.values for pixels in reversed(several)])", "images of a pack are in reverse order",
          (f"{T_PACK}test_log_probs_equal_the_plain_models",)),
    Fault(CHAT, "return [*self.encode_text(text), *self.stop_token_ids]", "return self.encode_text(text)",
          "no response ends", (f"{T_READER}test_a_response_ends_with_the_token_that_ends_generation",)),
    Fault(CHAT, "tokenize=False, add_generation_prompt=True", "tokenize=False, add_generation_prompt=False",
          "the prompt does not open the answer's turn", (f"{T_READER}test_prompt_equals_the_processors",)),
    Fault(QWEN, "position + max(shape)", "position + max(shape) + 1", "text after an image starts one late",
          (f"{T_READER}test_m_rope_positions_equal_the_models",)),
    # --- judge and verdicts -------------------------------------------------------------------------------------------
    Fault(JUDGE, "score = found[-1].strip()", "score = found[0].strip()", "the judge's first tag counts",
          (f"{T_JUDGE}test_the_last_tag_of_the_judges_text_is_the_verdict",)),
    Fault(JUDGE, "return JudgeVerdict(None, NO_REPLY, None)", "return JudgeVerdict(0, NO_REPLY, None)",
          "no reply of the judge counts as wrong", (f"{T_JUDGE}test_no_reply_is_no_verdict",)),
    Fault(JUDGE, "is_plainly_right(item.candidate, item.reference)", "is_plainly_right(item.reference, item.reference)",
          "the rule compares the reference with itself",
          (f"{T_JUDGE}test_a_plain_match_is_right_without_asking_and_nothing_else_is",)),
    Fault(JUDGE, "return [read_verdict(next(replies)) if isinstance(one, JudgeQuestion) else one for one in opened]",
          "return [read_verdict(next(replies)) for one in opened if isinstance(one, JudgeQuestion)]",
          "verdicts by rule are left out",
          (f"{T_JUDGE}test_verdicts_ask_everything_in_one_call_where_no_rule_decides_and_keep_the_order",)),
    Fault(VERDICT, "for row, one in zip(judged, found, strict=True)", "for row, one in zip(judged, given, strict=False)",
          "verdicts on answers are those of the exam", (f"{T}judging/test_exam.py",)),
    # --- pool, draws, seeds -------------------------------------------------------------------------------------------
    Fault(POOL, 'verdicts[row["question_id"], row["sample"]]}', 'verdicts[row["question_id"], 0]}',
          "every answer of the pool has the verdict on the first", (T_POOL[:-2],)),
    Fault(POOL, 'row["verdict"] != 0]', 'row["verdict"] == 1]', "failed verdicts are dropped as wrong",
          (f"{T_POOL}test_wrong_answers_are_dropped_on_demand_and_failed_verdicts_stay",)),
    Fault(POOL, "for teacher, rows in kept.items():", "for teacher, rows in zip(kept, reversed(kept.values())):",
          "the teachers are swapped", (f"{T_POOL}test_whole_answers_of_all_teachers_sorted_with_their_verdicts",)),
    Fault(POOL, '"accuracy": sum(judged) / max(len(judged), 1)', '"accuracy": sum(judged) / max(len(rows), 1)',
          "failed verdicts count in a teacher's accuracy",
          (f"{T_POOL}test_statistics_are_about_all_answers_and_leave_failed_verdicts_out_of_accuracy",)),
    Fault(DRAWS, "        choose.shuffle(stack)\n", "", "a teacher always gives its last answers",
          (f"{T_DISC}test_draw_is_balanced_without_replacement_and_changes_with_the_seed",)),
    Fault(DRAWS, "    choose.shuffle(teachers)\n", "", "one teacher always gives the odd answer", (f"{T_DISC}test_draw_is_balanced_without_replacement_and_changes_with_the_seed",)),
    Fault(EPOCHS, "_shuffle_epoch(count, seed, number // count)", "_shuffle_epoch(count, seed, 0)",
          "every epoch has the same order", (f"{T_GUARDS}test_t40_a_step_draws_the_same_whatever_was_drawn_before",)),
    Fault(EPOCHS, "drawn = range(step * wanted, (step + 1) * wanted)", "drawn = range(step, step + wanted)",
          "steps overlap", (f"{T_GUARDS}test_t40_a_step_draws_the_same_whatever_was_drawn_before",)),
    Fault(SEEDS, '"\\x1f".join(f"{type(part).__name__}:{part}" for part in parts)', '"".join(str(part) for part in parts)',
          "seeds of different parts collide", (f"{T_JOB}test_a_seed_depends_on_every_part_and_on_their_order",)),
    # --- store --------------------------------------------------------------------------------------------------------
    Fault(KEY, '"images": list(image_sha256)}', '"images": []}', "the key of an answer ignores the images",
          (f"{T_KEY}test_content_that_changes_the_key",)),
    Fault(KEY, 'f"{request_key}:{sample}"', 'f"{request_key}"', "all samples of a request have one key", (T_KEY[:-2],)),
    Fault(ANSWERS, "derive_request_seed(wanted.request_key(gap.prompt)) + gap.first",
          "derive_request_seed(wanted.request_key(gap.prompt))", "later samples repeat the first ones",
          (f"{T_ANSWERS}test_growing_makes_the_answers_that_asking_at_once_makes",)),
    Fault(ANSWERS, "                sample=gap.first + answer.index,\n", "                sample=answer.index,\n",
          "later samples are stored as the first ones", (f"{T_ANSWERS}test_more_answers_pay_only_for_the_new_ones",)),
    Fault(TEMPLATE, "hash_json([model.identity, model.family,", "hash_json([model.family,",
          "the template of another model is used", (f"{T_ANSWERS}test_a_template_is_kept_for_one_model_and_one_reading_of_it",)),
    Fault(REQUESTED, "            if key not in seen:\n", "            if key:\n", "equal prompts are asked twice",
          (f"{T_ANSWERS}test_equal_prompts_are_asked_once",)),
    Fault(STORE, "        inverse[order] = np.arange(len(order))\n        if", "        inverse[:] = np.arange(len(order))\n        if",
          "answers come in the order of the files",
          (f"{T_STORE}test_rows_come_in_the_order_asked_for_with_the_columns_asked_for",)),
    # --- questions, scores --------------------------------------------------------------------------------------------
    Fault(QUESTIONS, 'row if split == "warm_start" else _drop_target(row)', "row",
          "the target answer stays in the questions of the loop", (T_QUESTIONS[:-2],)),
    Fault(QUESTIONS, "split = owners.pop() if owners else _find_emptiest(splits, questions)",
          "split = _find_emptiest(splits, questions)", "an image is in several splits",
          (f"{T_QUESTIONS}test_rows_with_one_image_stay_in_one_split",)),
    Fault(EVALUATE, "zip(order, order[1:] + order[:1], strict=True)", "zip(order, order, strict=True)",
          "shuffled questions keep their images", (f"{T_EVALUATE}test_nobody_keeps_its_picture_and_sources_do_not_mix",)),
    Fault(EVALUATE, "return (single[:questions], single[questions:]), every[end:]",
          "return (single[questions:], single[:questions]), every[end:]", "shuffled answers are scored as the split's",
          (f"{T_EVALUATE}test_answers_are_told_apart_by_what_was_asked",)),
    Fault(SCORING, "marked = find_marked_answer(text)", "marked = None", "a marked final answer does not count alone",
          (f"{T_BENCH}scoring.py",)),
    Fault(VERDICTS, 'return Outcome("ok", float(found == sample.gold), found, "judge")',
          'return Outcome("ok", 1.0, found, "judge")', "every letter of the judge is right", (f"{T_BENCH}judging.py",)),
    Fault(AGGREGATE, "statistics.fmean(one.value for one in means), error)",
          "micro_average(rows).value, error)", "the macro average weighs rows",
          (f"{T_BENCH}parity.py::test_no_reply_is_scored_otherwise_than_by_the_harness",)),
    Fault(SCORES, "replies.get(sample.index), profile, cot, said or {}", "replies.get(sample.index), profile, cot, {}",
          "the judge's replies are ignored", (f"{T_BENCH}judging.py",)),
)  # fmt: skip
