"""Our side: the prompts and the update as `stages/ril.py` calls them.

python ours.py FIXTURE ATTENTION  (orders: worker.py; attention: runtime.group_attention)
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.performance.against_trl.fixture import Shape, read_shape
from tests.performance.against_trl.worker import Orders, Parts, Step, dump, settle


class Side:
    """Student, reference and trainer, loaded as `stages.loop.models.load_policy` loads them."""

    def __init__(self, folder: Path, parts: Parts, attention: str = "auto") -> None:
        from stages.config.ril import Ril
        from stages.config.runtime import Runtime
        from stages.config.sampling import Sampling
        from stages.training.trainer import Trainer
        from stages.vlm.checkpoint import open_checkpoint
        from stages.vlm.reader import load_network, load_reader

        self.shape: Shape = read_shape(folder)
        self.questions: list[dict[str, Any]] = json.loads((folder / "questions.json").read_text())
        self.images = [(folder / question["image"]).read_bytes() for question in self.questions]
        self.block = Ril(
            steps=1000,
            learning_rate=self.shape.learning_rate,
            questions_per_step=self.shape.questions,
            group=self.shape.rows // 2,
            kl_weight=self.shape.kl_weight,
            sampling=Sampling(max_tokens=self.shape.length),
            tokens_per_pack=self.shape.tokens_per_pack,
        )
        checkpoint = open_checkpoint(folder / "checkpoint")
        self.reader = load_reader(checkpoint)
        runtime = Runtime.model_validate({"group_attention": attention})
        self.student, self.reference = (load_network(checkpoint, self.reader, runtime) for _ in range(2))
        self.reference.model.requires_grad_(False)
        self.student.freeze_vision()
        self.trainer = Trainer(self.student.model, self.block, runtime)
        self._time(parts)

    def _time(self, parts: Parts) -> None:
        """From the first hidden state on, what is not named otherwise belongs to the pass that it is in."""
        parts.wrap(self.student, "encode_images", "vision")
        parts.wrap(self.trainer, "backward", "backward")
        parts.wrap(self.trainer, "step", "optimizer")
        for network, part in ((self.reference, "reference"), (self.student, "forward")):
            hidden = network.compute_hidden

            def starting(*arguments: Any, inner: Any = hidden, name: str = part, **keywords: Any) -> Any:
                parts.enter(name)
                return inner(*arguments, **keywords)

            network.compute_hidden = starting  # type: ignore[method-assign]

    def step(self) -> None:
        """Preparation, reference and update of one step."""
        from stages.groups.response import STUDENT, Response
        from stages.policy.batch import RewardedGroup
        from stages.policy.policy import Policy
        from stages.policy.rewards import score_group

        groups = []
        for prompt, question in zip(self.reader.make_prompts(self._conversations()), self.questions, strict=True):
            sources = [STUDENT if row < self.shape.rows // 2 else "teacher" for row in range(self.shape.rows)]
            answers = zip(sources, question["completions"], question["rewards"], strict=True)
            rows = [Response(source, "whole", tuple(ids), "stop", int(reward == 2)) for source, ids, reward in answers]
            groups.append(
                RewardedGroup(prompt, tuple(score_group(rows, [1.0 if r == 0 else -1.0 for r in question["rewards"]])))
            )
        policy = Policy(self.student, self.reference, self.trainer, self.block)
        policy.update(groups, self.shape.learning_rate)

    def prompt_ids(self) -> dict[str, list[int]]:
        """Token ids of the prompt by question text."""
        prompts = self.reader.make_prompts(self._conversations())
        return {q["text"]: prompt.ids.tolist() for q, prompt in zip(self.questions, prompts, strict=True)}

    def _conversations(self) -> list[Any]:
        asked = zip(self.questions, self.images, strict=True)
        return [([{"role": "user", "content": f"<image>{q['text']}"}], [image]) for q, image in asked]


def main() -> None:
    """Works off the driver's orders."""
    settle()
    orders, parts = Orders(), Parts()
    side = Side(Path(sys.argv[1]), parts, sys.argv[2])
    orders.answer(ready=True)
    while (order := orders.next())[0] != "end":
        if order[0] == "dump":
            dump(side.student.model, Path(order[1]))
            orders.answer(done=True)
            continue
        measured = Step(parts, count=order[0] == "count").begin()
        side.step()
        orders.answer(**measured.end())


if __name__ == "__main__":
    main()
