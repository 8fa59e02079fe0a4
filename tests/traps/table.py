"""For each trap of docs/traps.md that a test holds: the guard, what stands there without it, the test that then
fails.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """One guard."""

    trap: str
    file: str
    text: str  # stands exactly once in the file
    without: str  # what takes its place
    test: str  # pytest id
    slow: bool = False  # starts vLLM or several ranks


UPDATES, LOSS, GROUP = (f"tests/stages/policy/test_{name}.py::" for name in ("update", "loss", "rewards"))
J, HERE, CHAT = "tests/stages/judging/test_judge.py::", "tests/traps/test_guards.py::", "stages/vlm/chat.py"
PACK, READER = "tests/stages/groups/test_pack.py::", "tests/stages/vlm/test_reader.py::"
VLLM, GOLDEN = "tests/stages/engines/test_vllm.py::", "tests/conformance/test_golden.py::"
RANKS = "tests/stages/training/test_ranks.py::test_ranks_learn_what_one_learns"
UPDATE, REWARDS, OBJECTIVE = (f"stages/policy/{name}.py" for name in ("policy", "rewards", "loss"))

GUARDS = (
    Guard("T1", CHAT, "if token in known)", "if token in known and not token)",
          f"{HERE}test_t1_every_vision_token_is_banned"),
    Guard(
        "T2", "stages/engines/vllm.py", "except (ValueError, OSError, VLLMClientError)", "except (KeyError, OSError)",
        f"{VLLM}test_a_prompt_that_is_too_long_is_named_and_the_engine_goes_on", True,
    ),
    Guard("T3", "stages/vlm/qwen2_5_vl.py", "merged = rows // processor.image_processor.merge_size**2",
          "merged = rows // 14",
          f"{READER}test_prompt_equals_the_processors"),
    Guard("T4", "stages/vlm/text_pass.py", "if int(images.sum()) != len(features):", "if False:",
          f"{HERE}test_t4_images_and_places_must_agree"),
    Guard("T5", "stages/engines/arguments.py", "ids = chat.encode_prompt(messages, len(request.images))",
          "ids = [i for i in chat.encode_prompt(messages, len(request.images)) for _ in range(2)]",
          f"{VLLM}test_prompts_have_the_trainers_length", True),
    Guard("T6", "stages/loop/rollouts.py", "answer.text, answer.token_ids, answer.finish_reason",
          "answer.text, tuple(map(ord, answer.text)), answer.finish_reason", f"{HERE}test_t6_sampled_ids_are_kept"),
    Guard("T6", "stages/engines/arguments.py", "        return request.given_ids\n",
          "        return tuple(chat.encode_response(chat.decode(request.given_ids)))\n",
          "tests/stages/engines/test_scored_answers.py::test_given_ids_are_sent_and_scored_as_they_are"),
    Guard("T7", CHAT, "self._plain = make_plain_tokenizer(tokenizer._tokenizer)",
          "self._plain = tokenizer._tokenizer", f"{READER}test_text_never_becomes_a_special_token"),
    Guard("T7", CHAT, "self._hidden.sub(self._hide, text)", "text",
          "tests/stages/vlm/test_chat.py::test_a_prompt_has_the_added_tokens_of_the_template_alone"),
    Guard("T8", "stages/vlm/family.py", "first = sum(self.rows[:start])", "first = start",
          f"{HERE}test_t8_a_prompts_pixels_are_its_own"),
    Guard("T9", "stages/groups/pack.py", "following = int(group.prompt.positions.max()) + 1", ("following = "
                                                                                               "prompt_tokens"),
          f"{PACK}test_log_probs_equal_the_plain_models"),
    Guard("T9", "stages/vlm/qwen2_5_vl.py", "axes[:, stop:] -= count - max(shape)", "axes[:, stop:] -= 0",
          f"{READER}test_m_rope_positions_equal_the_models"),
    Guard("T10", "stages/groups/group_mask.py",
          "(owner[None, :] < 0) | (owner[:, None] == owner[None, :])", "owner[None, :] == owner[None, :]",
          f"{PACK}test_a_response_sees_its_prompt_and_itself_only"),
    Guard("T11", UPDATE, "features = (self.trainer.forward(compute) if sharded else compute()) if frozen else None",
          "encode_images = None",
          f"{HERE}test_t11_features_are_computed_once_a_step"),
    Guard("T12", "stages/engines/vllm.py", "kwargs={\"weights_iterator\": iter_counted()})",
          "kwargs={\"weights_iterator\": iter(())})",
          f"{VLLM}test_new_weights_in_one_of_two_engines_beside_training", True),
    Guard("T14", UPDATE, "return self.block.sampling.temperature or 1.0", "return 1.0",
          f"{HERE}test_t14_log_probs_are_at_the_temperature_of_sampling"),
    Guard("T14", "stages/engines/arguments.py",
          "{\"logprobs_mode\": \"processed_logprobs\"} if log_probs else {}", "{}",
          "tests/stages/engines/test_vllm_log_probs.py::test_weights_are_1_at_every_temperature", True),
    Guard("T15", OBJECTIVE, "gap = torch.where(by_student, trainer - engine, torch.zeros_like(trainer)).detach()",
          "gap = (trainer - engine).detach()", f"{GOLDEN}test_c9_corrections_for_the_engine"),
    Guard("T15", UPDATE, "if one.response.source == STUDENT and one.response.sampled_log_probs is None:", "if False:",
          f"{UPDATES}test_a_correction_without_the_engines_log_probs_is_refused"),
    Guard("T18", "stages/engines/start.py", 'if settings.sharing == "sleep" else ()', "if False else ()",
          "tests/stages/engines/test_start.py::test_an_engine_that_sleeps_is_refused_with_expandable_segments"),
    Guard("T19", UPDATE, "old = log_probs.detach() if before is None else before",
          "old = log_probs.detach() - 1e-4 if before is None else before",
          f"{UPDATES}test_the_papers_update_is_equation_2"),
    Guard("T19", "stages/vlm/weights.py", "return model.eval()", "return model.train()",
          f"{HERE}test_t19_models_are_trained_without_dropout"),
    Guard("T20", "stages/groups/head.py", "return left.float() @ right.float()", "return (left @ right).float()",
          f"{GOLDEN}test_c6_half_precision_is_summed_and_kept_in_fp32"),
    Guard("T20", "stages/adversary/discriminator_model.py",
          "return linear(input.float(), self.weight.float(), self.bias.float())",
          "return linear(input, self.weight, self.bias).float()",
          "tests/stages/adversary/test_discriminator.py::test_in_bf16_neither_head_nor_logit_is_rounded"),
    Guard("T21", "stages/groups/head.py", "yield slice(top, min(top + ROWS_PER_TILE, rows)),", ("yield slice(top, "
                                                                                                "rows),"),
          f"{HERE}test_t21_logits_exist_for_one_tile_at_a_time"),
    Guard("T23", "stages/training/passes.py", "if tower and not seen and pack.pixels is None:",
          "if False:", RANKS, True),
    Guard("T25", "stages/groups/pack.py", "start, tokens = number, 0", "start, tokens = number + 1, 0",
          f"{PACK}test_every_row_is_packed_once"),
    Guard("T26", "stages/vlm/reader.py", "DTYPES[checkpoint.precision]", "torch.bfloat16",
          f"{HERE}test_t26_the_number_format_is_that_of_the_card"),
    Guard("T27", "stages/engines/calls.py", "for _ in range(self.settings.concurrency):", "for _ in range(1):",
          "tests/stages/engines/test_calls.py::test_calls_are_under_way_side_by_side"),
    Guard("T28", REWARDS, "pairs = [(row, logit) for row, logit in pairs if row.verdict is not None]",
          "pairs = list(pairs)",
          f"{LOSS}test_a_failed_verdict_leaves_group_and_baseline"),
    Guard("T29", "stages/judging/sanitize.py", ("return _TAG_OPENER.sub(_HARMLESS, "
                                                "normalise_characters(text))"), "return normalise_characters(text)",
          f"{J}test_no_part_can_close_its_fence"),
    Guard("T29", "stages/judging/judge.py", "score = found[-1].strip()", "score = found[0].strip()",
          f"{J}test_the_last_tag_of_the_judges_text_is_the_verdict"),
    Guard("T30", "stages/judging/judge.py", "temperature=0.0, top_p=1.0", "temperature=1.0, top_p=1.0",
          f"{J}test_the_judge_is_greedy_and_may_be_held_to_a_pattern"),
    Guard("T31", "stages/policy/metrics.py", "names.SIMILARITY: _mean(", "names.STUDENT_SIMILARITY: _mean(",
          f"{HERE}test_t31_both_rewards_are_logged_for_every_source"),
    Guard("T32", REWARDS, 'flat = objective.zero_variance == "drop" and', "flat = False and",
          f"{GROUP}test_zero_variance"),
    Guard("T32", "stages/policy/metrics.py",
          "len({one.reward for one in group}) <= 1", "len({one.reward for one in group}) < 1",
          f"{HERE}test_t32_the_share_of_groups_without_variance_is_logged"),
    Guard("T33", "stages/adversary/adversary.py",
          'if one.is_whole or self.settings.degenerate == "learned"', "if one.text",
          "tests/stages/adversary/test_adversary.py::test_a_step_with_one_side_only_or_with_cut_answers_only_leaves_it_alone"),
    Guard("T33", CHAT, "skip_special_tokens=False)).strip()", "skip_special_tokens=False))",
          f"{HERE}test_t33_nothing_of_an_end_token_or_blank_is_left_in_a_text"),
    Guard("T34", "stages/adversary/diagnostics.py", "share <= 1 - SURE", "share < 0",
          "tests/stages/adversary/test_diagnostics.py::test_saturation_alarms_only_after_so_many_steps_in_a_row"),
    Guard("T35", "stages/adversary/discriminator_model.py", "self.score(hidden[pack.last])",
          "self.score(hidden[-1:].expand(len(pack.last), -1))",
          "tests/conformance/test_closed_form.py::test_c10_the_logit_is_read_at_the_last_token_of_each_text"),
    Guard("T36", REWARDS, "return int(logit < 0.0)", "return int(logit > 0.0)",
          f"{LOSS}test_check_values_of_the_paper"),
    Guard("T36", "stages/adversary/discriminator_model.py", "[float(writer in (STUDENT, NEGATIVE)) for",
          "[float(writer not in (STUDENT, NEGATIVE)) for",
          "tests/stages/adversary/test_adversary.py::test_it_pauses_where_it_is_too_good_and_learns_from_pairs"),
    Guard("T37", "stages/training/trainer.py", "self.sharded, self._replicated = stage == 3,",
          "self.sharded, self._replicated = False,", RANKS, True),
    Guard("T38", "stages/job/files.py",
          "        yield temporary\n        for file in sorted(", "        yield path\n        for file in sorted(",
          "tests/stages/job/test_job.py::test_an_out_appears_whole_or_not_at_all"),
    Guard("T39", "stages/pool.py", 'if row["finish_reason"] != "length" or (keeps and row["response"])]', "if row]",
          "tests/stages/test_pool.py::test_whole_answers_of_all_teachers_sorted_with_their_verdicts"),
    Guard("T40", "stages/job/epochs.py", "drawn = range(step * wanted, (step + 1) * wanted)",
          "drawn = range(step, step + wanted)",
          f"{HERE}test_t40_a_step_draws_the_same_whatever_was_drawn_before"),
    Guard("T42", "stages/adversary/discriminator_model.py", "field(default=(), repr=False)", "field(default=())",
          f"{HERE}test_t42_what_is_printed_of_a_text_holds_no_image"),
    Guard("T43", "stages/job/hub.py", 'os.environ.get(DOWNLOADS) == "1"', "True",
          f"{HERE}test_t43_nothing_is_fetched_unless_downloads_are_allowed"),
)  # fmt: skip
