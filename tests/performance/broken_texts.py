"""What broken texts earn from the discriminator of a finished run, before and after 30 updates as in the loop.

`python -m tests.performance.broken_texts [folder of the project, .]`: ten seconds of one core for the tiny profile.
"""

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.environment import prepare
from flows.jobs import open_job
from stages.adversary.adversary import Adversary
from stages.adversary.discriminator_model import Text
from stages.config.discriminator import Discriminator
from stages.config.objective import Objective
from stages.config.params import load_params
from stages.config.ril import Ril
from stages.groups.response import STUDENT, Response
from stages.job.files import read_shards
from stages.job.job import Job
from stages.loop.models import load_adversary
from stages.policy.rewards import score_group
from stages.responses.draws import read_teacher_answers
from stages.vlm.checkpoint import open_verified
from stages.vlm.reader import Reader, load_network, load_reader

UPDATES = 30
ANSWERS, LOOP, NOISE = "several answers one after another", "a loop", "random signs or tokens"
CLOSED = (ANSWERS, LOOP, NOISE)  # none may earn anything
PART, WORDS = "a part of an answer", "an answer's words in another order"  # may pass: some are answers
WHOLE = "teachers' answers"
Groups = Mapping[str, Sequence[Response]]  # whole answers of both sides by question


def read_groups(job: Job) -> Groups:
    """The whole answers of student and teachers to every question of the pool."""
    groups: dict[str, list[Response]] = {}
    for row in read_shards(job.input("data/pool")).to_pylist():
        groups[row["question_id"]] = [
            Response(one.teacher, one.text, (), one.finish_reason, 0) for one in read_teacher_answers(row)
        ]
    for row in read_shards(job.input("data/rollout")).to_pylist():
        groups.get(row["question_id"], []).append(Response(STUDENT, row["response"], (), row["finish_reason"], 0))
    return {name: [one for one in group if one.is_whole] for name, group in groups.items()}


def make_broken_texts(groups: Groups, reader: Reader, count: int, draw: random.Random) -> dict[str, list[str]]:
    """`count` texts of each kind, made from the answers of both sides."""
    sides = [
        [one.text for one in group if (one.source == STUDENT) == by_student]
        for group in groups.values()
        for by_student in (True, False)
    ]
    sides = [side for side in sides if side]

    def pick() -> str:
        return draw.choice(draw.choice(sides))

    def concatenate() -> str:
        return draw.choice((" ", "\n", "", ", ")).join(draw.choices(draw.choice(sides), k=draw.randint(2, 5)))

    def repeat() -> str:
        """A block of 1 to 24 tokens, over and over, as long as two to five answers."""
        ids = reader.chat.encode_text(pick() + pick())
        start = draw.randrange(len(ids))
        block = ids[start : start + draw.randint(1, 24)]
        return reader.chat.decode((block * 200)[: draw.randint(3 * len(block), 3 * len(block) + 60)])

    def babble() -> str:
        if draw.random() < 0.5:
            return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz 0123456789:,.->", k=draw.randint(5, 80)))
        words = reader.chat.tokenizer.vocab_size
        return reader.chat.decode([draw.randrange(words) for _ in range(draw.randint(3, 60))])

    def cut() -> str:
        text = pick()
        return text[: draw.randint(1, max(1, len(text) - 1))]

    def reorder() -> str:
        words = pick().split()
        return " ".join(draw.sample(words, len(words)))

    def copy() -> str:
        return next(text for text in iter(pick, None) if text in teachers)

    teachers = {one.text for group in groups.values() for one in group if one.source != STUDENT}
    kinds = {ANSWERS: concatenate, LOOP: repeat, NOISE: babble, PART: cut, WORDS: reorder, WHOLE: copy}
    return {name: [make() for _ in range(count)] for name, make in kinds.items()}


def measure_shares(adversary: Adversary, objective: Objective, texts: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The share of the texts of each kind that earn the similarity reward, as answers that a student has ended."""
    shares = {}
    for kind, bodies in texts.items():
        logits = adversary.score([Text(body) for body in bodies])
        rows = [Response(STUDENT, body, (), "stop", 0) for body in bodies]
        earned = [one.similarity > 0 for one in score_group(rows, logits, objective)]
        shares[kind] = sum(earned) / len(earned)
    return shares


def update_as_in_loop(adversary: Adversary, groups: Groups, block: Ril, draw: random.Random) -> None:
    """UPDATES steps on `block.questions_per_step` questions; three of four student answers are cut in a loop."""
    both = [group for group in groups.values() if len({one.source == STUDENT for one in group}) == 2]
    for _ in range(UPDATES):
        rows: list[Response] = []
        texts: list[Text] = []
        for number in range(block.questions_per_step):
            group = draw.choice(both)
            student = [one for one in group if one.source == STUDENT]
            teachers = [one for one in group if one.source != STUDENT]
            loops = [Response(STUDENT, draw.choice(teachers).text[:12] * 20, (), "length", 0) for _ in range(3)]
            step = [draw.choice(student), *loops, *draw.sample(teachers, min(4, len(teachers)))]
            rows += step
            texts += [Text(one.text, str(number)) for one in step]
        adversary.learn(rows, texts)


def measure_run(job: Job, groups: Groups, count: int, held_out: int) -> list[dict[str, float]]:
    """The shares before and after the updates, for a job of stage `ril`.

    Broken texts are made from the last `held_out` questions, the updates use the others.
    """
    draw = random.Random(0)
    checkpoint = open_verified(job.input("data/warm_start"), job.store)
    reader = load_reader(checkpoint)
    objective = job.block(Ril).resolve(job.block(Discriminator))
    adversary = load_adversary(job, load_network(checkpoint, reader), reader, objective)
    names = list(groups)
    texts = make_broken_texts({name: groups[name] for name in names[-held_out:]}, reader, count, draw)
    shares = [measure_shares(adversary, objective, texts)]
    update_as_in_loop(adversary, {name: groups[name] for name in names[:-held_out]}, job.block(Ril), draw)
    return [*shares, measure_shares(adversary, objective, texts)]


def main() -> None:
    prepare()
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    params = load_params(root / "params.yaml")
    groups = read_groups(open_job("discriminator", None, root, params))
    before, after = measure_run(open_job("ril", None, root, params), groups, 200, 40)
    print(f"share of 200 texts that earn similarity, before and after {UPDATES} updates")
    for kind in before:
        print(f"{kind:40} {before[kind]:6.1%} {after[kind]:6.1%}")


if __name__ == "__main__":
    main()
