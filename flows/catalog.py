"""The stages as Prefect flows, made from the table: what the UI lists, one flow run for each stage while a server
answers.

A flow holds no logic: it does the work that `flows/run.py` has prepared in this process, or stands for a run of which
another process keeps the journal (`flows/ui/flow_records.py`).
"""

from collections.abc import Callable
from typing import Any

from prefect import Flow, flow

from stages.config.stage import Stage


def stage_flow(stage: Stage, perform: Callable[..., None]) -> Flow[..., Any]:
    """The flow of `stage`, with its name and title; a run of it calls `perform` with the stage's name and item, if it
    has one.
    """

    def run_item(item: str) -> None:
        perform(stage.name, item)

    def run_stage() -> None:
        perform(stage.name)

    describe = flow(name=stage.name, description=f"{stage.title}.", persist_result=False)
    return describe(run_item) if stage.items else describe(run_stage)
