"""C14: the game works. A frozen discriminator's style is taken over; against itself the student neither wins nor
drifts.
"""

from pathlib import Path

import pytest

from stages.adversary.discriminator_model import DiscriminatorCollator, Text, compute_accuracy, score_texts
from stages.config.discriminator import DiscriminatorSwitches
from stages.groups.response import STUDENT
from tests.conformance.game import arrows, colons, loop, played, sampled, taught, warm_started

KL_BOUND = 0.05  # nats a token


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_c14_a_frozen_discriminators_style_is_taken_over(tmp_path: Path, seed: int) -> None:
    """It knows one feature, arrows instead of colons; no teacher text is trained on, so the student has to find it by
    itself.
    """
    table = warm_started(tmp_path, seed)
    styles = [(colons(n), STUDENT) if n % 2 else (arrows(n), "teacher") for n in range(200)]
    discriminator = taught(table, styles, 30, 1e-3, seed)
    fresh = score_texts(
        discriminator, DiscriminatorCollator(table.reader, 100_000), [Text(colons(n)) for n in range(300, 340)]
    )
    fresh += score_texts(
        discriminator, DiscriminatorCollator(table.reader, 100_000), [Text(arrows(n)) for n in range(300, 340)]
    )
    assert compute_accuracy(fresh, [1] * 40 + [0] * 40) > 0.95
    block = loop(teacher_rows="none")
    history, _ = played(
        table, discriminator, block, DiscriminatorSwitches(update="frozen"), [[(0,)] for _ in table.prompts], seed
    )
    quarter = len(history) // 4
    first, last = (sum(row["logit"] for row in part) / quarter for part in (history[:quarter], history[-quarter:]))
    print(
        f"seed {seed}: mean logit {history[0]['logit']:.2f} at first, {first:.2f} in quarter 1, {last:.2f} in quarter 4"
    )
    assert last < first - 0.5


@pytest.mark.slow
def test_c14_against_itself_nobody_wins(tmp_path: Path) -> None:
    """Teacher texts are the SFT student's own: the discriminator ends at chance and the student stays where it was."""
    table = warm_started(tmp_path, 7)
    from stages.vlm.reader import load_network

    start = load_network(table.checkpoint, table.reader)
    pool = sampled(start, table.reader, table.prompts, 64, 1)
    own = sampled(start, table.reader, table.prompts, 16, 2)
    decode = table.reader.chat.decode
    pairs = [
        pair
        for n in range(16)
        for k in range(4)
        for pair in ((decode(own[k][n]), STUDENT), (decode(pool[k][n]), "teacher"))
    ]
    discriminator = taught(table, pairs, 8, 3e-4, 7)
    block = loop(learning_rate=5e-5, discriminator_learning_rate=1e-4)  # at 2e-4 the student drifts: accuracy 0.58
    # As Eq. 1 is printed: where truncated texts earn nothing, the student comes to write fewer of them than its start.
    switches = DiscriminatorSwitches(degenerate="learned", negatives=0)
    history, student = played(table, discriminator, block, switches, pool, 7)
    new = sampled(student, table.reader, table.prompts, 125, 3)
    stored = sampled(start, table.reader, table.prompts, 125, 4)
    collator = DiscriminatorCollator(table.reader, 100_000)
    logits = [
        score_texts(discriminator, collator, [Text(decode(ids)) for group in side for ids in group])
        for side in (new, stored)
    ]
    reached = (compute_accuracy(logits[0], [1] * 500) + compute_accuracy(logits[1], [0] * 500)) / 2
    kl = sum(row["kl/student"] for row in history[-8:]) / 8
    print(f"accuracy of the discriminator at the end {reached:.3f}, KL of the student {kl:.4f} nats a token")
    assert abs(reached - 0.5) <= 0.05
    assert kl < KL_BOUND
