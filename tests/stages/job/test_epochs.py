"""The items of a step: every epoch has each once, in an order of its own, whatever steps were drawn before."""

from stages.job.epochs import pick_places


def test_every_epoch_has_each_item_once_in_an_order_of_its_own() -> None:
    epochs = [[place for step in (2 * n, 2 * n + 1) for place in pick_places(10, 5, step, 3)] for n in range(4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert pick_places(10, 10, 0, 3) == epochs[0]
    assert pick_places(10, 10, 0, 4) != epochs[0], "another seed"


def test_a_step_across_two_epochs_ends_one_and_begins_the_next() -> None:
    whole = pick_places(4, 8, 0, 1)
    assert [place for step in range(4) for place in pick_places(4, 3, step, 1)] == [*whole, *pick_places(4, 4, 2, 1)]
