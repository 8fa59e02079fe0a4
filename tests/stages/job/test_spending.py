"""Caps of `budget`: what may be asked for, what is entered, what is said."""

import pickle
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.job.spending import BUDGET_CODE, BudgetReached, Spending, TokenPrices
from stages.job.stop import STOP

PRICES = TokenPrices(2.0, 10.0)


def open_spending(folder: Path, **caps: float) -> Spending:
    return Spending(folder / "spent" / "teacher@big.jsonl", "budget.teacher", caps)


@given(
    cap=st.integers(0, 60),
    sizes=st.lists(st.integers(1, 9), max_size=40),
    failing=st.sets(st.integers(0, 39)),
    under_way=st.integers(1, 12),
)
def test_answers_never_pass_their_cap_and_use_all_of_it(
    tmp_path_factory: pytest.TempPathFactory, cap: int, sizes: list[int], failing: set[int], under_way: int
) -> None:
    """Requests of any size, some of which fail, so many under way: as many answers as the cap, or all that succeed."""
    spending = open_spending(tmp_path_factory.mktemp("law"), answers=cap)
    left, opened, paid, number = list(sizes), list[tuple[int, int]](), 0, 0
    while left or opened:
        admitted = spending.admit(left[0], PRICES, 100) if left and len(opened) < under_way else 0
        if admitted:
            opened.append((number, admitted))
            number += 1
            left[0] -= admitted
            left = left if left[0] else left[1:]
        elif opened:
            which, answers = opened.pop(0)
            if which not in failing:
                spending.add(answers, 5, 3 * answers, PRICES)
                paid += answers
            assert paid + sum(answers for _, answers in opened) <= cap
        elif left:
            spending.settle()
            if spending.find_reached():
                break
    assert paid <= cap
    assert paid == cap or not left


@given(cost=st.integers(1, 50), cap=st.integers(1, 2000), bound=st.integers(50, 200))
def test_tokens_are_held_back_by_what_an_answer_costs(
    tmp_path_factory: pytest.TempPathFactory, cost: int, cap: int, bound: int
) -> None:
    """With answers of one length a cap on tokens is passed by less than one answer, however many are under way."""
    spending = open_spending(tmp_path_factory.mktemp("law"), tokens=cap)
    while not spending.find_reached():
        opened = 0
        while opened < 64 and spending.admit(1, PRICES, bound):
            opened += 1
        assert opened, "something is left, so one answer may be asked for"
        for _ in range(opened):
            spending.add(1, 0, cost, PRICES)
        spending.settle()
    assert cap <= spending.spent["tokens"] < cap + cost


def test_money_is_that_of_both_prices_and_survives_the_process(tmp_path: Path) -> None:
    open_spending(tmp_path).add(4, 1_000_000, 500_000, PRICES)
    again = open_spending(tmp_path, money=7.0)
    assert again.find_reached() == "money"
    assert again.spent == {"answers": 4, "tokens": 1_500_000, "money": 7.0}
    with pytest.raises(
        BudgetReached, match=r"budget\.teacher\.money is 7 and used up.*4 answers, 1,500,000 tokens, 7 mon"
    ):
        again.check()
    with pytest.raises(BudgetReached, match=r"300 answers are missing, about 525 money.*raise budget\.teacher\.money"):
        again.check(300)
    open_spending(tmp_path, money=7.1).check()


def test_processes_and_threads_add_to_one_ledger(tmp_path: Path) -> None:
    one, other = open_spending(tmp_path, answers=2000), open_spending(tmp_path, answers=2000)

    def pay(spending: Spending) -> None:
        for _ in range(200):
            spending.add(1, 1, 1, PRICES)

    threads = [threading.Thread(target=pay, args=(spending,)) for spending in (one, other, one)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert one.find_reached() is None
    assert one.spent == {"answers": 600, "tokens": 1200, "money": pytest.approx(600 * 12 / 1e6)}
    assert one.admit(2000, PRICES, 10) == 1400, "of both"


def test_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    """A machine that died while it wrote: what is whole counts, also what comes after."""
    spending = open_spending(tmp_path, answers=10)
    spending.add(3, 1, 1, PRICES)
    with spending.ledger.open("ab") as file:
        file.write(b'{"answers": 4, "tok\x00\x00\n')
    spending.add(2, 1, 1, PRICES)
    assert open_spending(tmp_path, answers=10).admit(10, PRICES, 10) == 5


def test_other_ranks_get_it_with_the_job(tmp_path: Path) -> None:
    spending = open_spending(tmp_path, answers=2)
    spending.add(1, 1, 1, PRICES)
    there = pickle.loads(pickle.dumps(spending))
    assert (there.ledger, there.key, there.caps) == (spending.ledger, spending.key, spending.caps)
    there.add(1, 1, 1, PRICES)
    assert spending.find_reached() == "answers"


def test_without_caps_everything_is_admitted(tmp_path: Path) -> None:
    spending = open_spending(tmp_path)
    assert spending.admit(10**9, PRICES, 100) == 10**9
    spending.check()


def test_a_training_loop_ends_after_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge of the loop: what is under way is finished, the loop saves and ends with the code of the budget."""
    monkeypatch.setattr(STOP, "code", None)
    spending = open_spending(tmp_path, answers=2)
    with STOP.awaiting():
        spending.add(1, 1, 1, PRICES)
        assert STOP.code is None
        spending.add(1, 1, 1, PRICES)
        assert STOP.code == BUDGET_CODE
        assert STOP.seconds_left > 10**9, "there is time to save"
