"""The block `budget`: what a stage may spend before it stops."""

from typing import Annotated

from pydantic import Field

from stages.config.block import Block

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Amount = Annotated[float, Field(ge=0, le=1e15)]


class Budget(Block):
    """Caps on what a run of a stage spends, over all of its attempts with one store. No result depends on them.

    Answers, tokens and money are those of endpoints (`kind: openai`); engines of this machine cost GPU hours.
    """

    answers: _Count | None = Field(None, description="Answers of endpoints.")
    tokens: _Count | None = Field(
        None, description="Tokens that endpoints read and write, as their replies count them."
    )
    money: _Amount | None = Field(
        None, description="Cost of endpoints, in the currency of prompt_price and completion_price of their engines."
    )
    gpu_hours: _Amount | None = Field(None, description="Hours of the stage, multiplied by the GPUs that it sees.")


def find_budget(budgets: dict[str, Budget], run: str) -> tuple[str, Budget]:
    """Returns the key of the caps on `run` and the caps: those of the run itself, else of its stage, else none.

    The caps of a stage with several items (`teacher`) hold for each of them.
    """
    stage = run.partition("@")[0]
    name = run if run in budgets else stage
    return f"budget.{name}", budgets.get(name, Budget())
