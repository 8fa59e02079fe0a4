"""The values of `ril.rewards` for the answers of a step: of functions, and of the judge by rubrics, in their order."""

from collections.abc import Callable, Sequence

from stages.config.own_rewards import RUBRIC, Reward
from stages.corpora.rows import Question
from stages.groups.response import Response
from stages.judging.rubric import RubricJudge
from stages.reward_functions.functions import ResponsePlace, RewardFunctions, Values


class OwnRewards:
    """Everything that `ril.rewards` adds to the two rewards of the paper."""

    def __init__(
        self, rewards: Sequence[Reward], functions: RewardFunctions | None, rubrics: Sequence[RubricJudge]
    ) -> None:
        """`functions` has the entries of `rewards` that are no rubrics, `rubrics` the others; both in its order."""
        self._rewards, self._functions, self._rubrics = rewards, functions, rubrics
        self._places: list[ResponsePlace] = []

    @property
    def used(self) -> bool:
        """Whether any answer was added since the last `collect`."""
        return bool(self._places)

    def put(self, number: int, question: Question, rows: Sequence[Response]) -> None:
        """Adds the answers to question `number` of the step; functions compute them at once."""
        self._places += [(number, place) for place in range(len(rows))]
        if self._functions is not None:
            self._functions.put(number, question, rows)
        for rubric in self._rubrics:
            rubric.put(number, question, rows)

    def collect(self, title: str, say: Callable[[str], None]) -> dict[ResponsePlace, Values]:
        """Asks the judge, waits for the functions, and returns the values of each answer; None: failed.

        Raises Failure when an entry failed too often.
        """
        judged = [rubric.collect(title) for rubric in self._rubrics]
        computed = self._functions.collect(title, say)[0] if self._functions is not None else {}
        places, self._places = self._places, []
        return {place: self._order(place, judged, computed) for place in places}

    def _order(
        self,
        place: ResponsePlace,
        judged: Sequence[dict[ResponsePlace, float | None]],
        computed: dict[ResponsePlace, Values],
    ) -> Values:
        of_judge, of_functions = iter(judged), iter(computed.get(place, ()))
        return tuple(next(of_judge)[place] if one.use == RUBRIC else next(of_functions) for one in self._rewards)
