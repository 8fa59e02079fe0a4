"""TRL's side: GRPOTrainer with answers and rewards given.  python theirs.py FIXTURE [--head-on-answers]  (orders:
worker.py).

Runs in the environment that environment.sh makes, without this project's code. The answers come through `rollout_func`,
TRL's own way in, so that nothing is generated; the prompts' token ids are made once, outside the measured time.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from worker import Orders, Parts, Step, dump, settle


class Given:
    """Answers and rewards by question text, handed out row by row."""

    def __init__(self, folder: Path) -> None:
        self.questions: list[dict[str, Any]] = json.loads((folder / "questions.json").read_text())
        self._by_text = {question["text"]: question for question in self.questions}
        self._reward_of = {
            tuple(ids): float(reward)
            for question in self.questions
            for ids, reward in zip(question["completions"], question["rewards"], strict=True)
        }
        self.prompt_ids: dict[str, list[int]] = {}

    def rollout(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """TRL's rollout_func: the answers, each question's in order."""
        texts = [_text(prompt) for prompt in prompts]
        missing = [prompts[texts.index(text)] for text in dict.fromkeys(texts) if text not in self.prompt_ids]
        if missing:
            ids, _, _ = trainer._tokenize_prompts(missing)
            self.prompt_ids.update(zip(map(_text, missing), ids, strict=True))
        seen: dict[str, int] = {}
        completions = []
        for text in texts:
            seen[text] = seen.get(text, -1) + 1
            completions.append(list(self._by_text[text]["completions"][seen[text]]))
        return {
            "prompt_ids": [list(self.prompt_ids[text]) for text in texts],
            "completion_ids": completions,
            "logprobs": None,
        }

    def reward(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        """TRL's reward function."""
        return [self._reward_of[tuple(ids)] for ids in completion_ids]


def _text(prompt: Any) -> str:
    """The words of a conversation's last message."""
    content = prompt[-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


def trainer_for(folder: Path, given: Given, parts: Parts, callback: Any) -> Any:
    """GRPOTrainer with the settings of peers' protocol: Dr.GRPO, no scaling of rewards, one update on each set of
    answers.
    """
    from datasets import Dataset, Image
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
    from trl import GRPOConfig, GRPOTrainer

    shape = json.loads((folder / "shape.json").read_text())
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "checkpoint", dtype=torch.float32)
    model.model.visual.requires_grad_(False)
    rows = [
        {"prompt": [{"role": "user", "content": q["text"]}], "image": str(folder / q["image"])} for q in given.questions
    ]
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        use_vllm=False,
        loss_type="dr_grpo",
        scale_rewards="none",
        beta=shape["kl_weight"],
        use_bias_correction_kl=False,
        num_iterations=1,
        num_generations=shape["rows"],
        per_device_train_batch_size=shape["rows"],
        gradient_accumulation_steps=shape["questions"],
        max_completion_length=shape["length"],
        learning_rate=shape["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        max_steps=1000,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=given.reward,
        args=config,
        train_dataset=Dataset.from_list(rows).cast_column("image", Image()),
        processing_class=AutoProcessor.from_pretrained(folder / "checkpoint"),
        rollout_func=given.rollout,
        callbacks=[callback],
    )
    _time(trainer, parts)
    return trainer


def _time(trainer: Any, parts: Parts) -> None:
    inner = trainer._get_per_token_logps_and_entropies

    def passes(model: Any, *arguments: Any, **keywords: Any) -> Any:
        with parts.within("reference" if model is trainer.ref_model else "forward"):
            return inner(model, *arguments, **keywords)

    trainer._get_per_token_logps_and_entropies = passes
    parts.wrap(trainer.accelerator, "backward", "backward")


def callback_for(orders: Orders, parts: Parts, given: Given) -> Any:
    """A callback of the training loop that stops between steps until the driver says go on.

    A step is all from one stop to the next: the data loader (images are decoded there), the processor, both passes, the
    update.
    """
    from transformers import TrainerCallback

    class Gate(TrainerCallback):  # type: ignore[misc]
        measured: Step | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            """Waits before the first step."""
            orders.answer(ready=True)
            self.wait(control, model)

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            """Clipping is over; the update begins."""
            parts.enter("optimizer")

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            """Reports a step, waits before the next."""
            assert self.measured is not None
            orders.answer(**self.measured.end())
            self.wait(control, model)

        def wait(self, control: Any, model: Any) -> None:
            """Until an order to go on."""
            while (order := orders.next())[0] in ("dump", "prompts"):
                if order[0] == "dump":
                    dump(model, Path(order[1]))
                orders.answer(ids=given.prompt_ids)
            control.should_training_stop = order[0] == "end"
            self.measured = Step(parts, count=order[0] == "count").begin()

    return Gate()


def main() -> None:
    """Works off the driver's orders."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--head-on-answers", action="store_true", help="score answer tokens only, as TRL does on GPUs")
    given = options.parse_args()
    settle()
    if given.head_on_answers:
        import trl.trainer.utils

        trl.trainer.utils._use_triton = lambda device: True  # chooses the rows; the kernels' own test stays as it is
    orders, parts, answers = Orders(), Parts(), Given(given.folder)
    trainer_for(given.folder, answers, parts, callback_for(orders, parts, answers)).train()


if __name__ == "__main__":
    main()
