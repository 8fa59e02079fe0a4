"""The stages as Prefect flows: what the UI lists, and one flow run for each stage that DVC runs while a server answers.

A flow holds no logic: it does the work that `flows/run.py` has prepared in this process.
"""

from prefect import flow

from flows.server import perform


@flow(persist_result=False)
def model(item: str) -> None:
    """Makes a tiny model from nothing, or pins a given one."""
    perform("model", item)


@flow(persist_result=False)
def questions() -> None:
    """Reads or draws questions and splits them."""
    perform("questions")


@flow(name="warm_start", persist_result=False)
def warm_start() -> None:
    """SFT of the base student."""
    perform("warm_start")


@flow(persist_result=False)
def teacher(item: str) -> None:
    """Answers of one teacher."""
    perform("teacher", item)


@flow(persist_result=False)
def verdict(item: str) -> None:
    """The judge's verdict on every answer of one teacher."""
    perform("verdict", item)


@flow(persist_result=False)
def pool() -> None:
    """The teachers' answers that the student learns from."""
    perform("pool")


@flow(persist_result=False)
def rollout() -> None:
    """Answers of the warm-started student."""
    perform("rollout")


@flow(persist_result=False)
def discriminator() -> None:
    """Learns to tell student from teacher text."""
    perform("discriminator")


@flow(persist_result=False)
def ril() -> None:
    """Reinforcement and imitation learning of the student."""
    perform("ril")


@flow(persist_result=False)
def evaluate(item: str) -> None:
    """Scores of one model."""
    perform("evaluate", item)


@flow(persist_result=False)
def report() -> None:
    """One page about the run."""
    perform("report")
