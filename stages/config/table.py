"""The stages as data: name, parameters, inputs and outputs of each.

`dvc.yaml` declares the same for DVC; a test compares the two, and `Job` refuses everything that a stage does not
declare here. Paths are relative to the project's folder. `{item}` is the id of a run (`teacher@internvl3`:
`internvl3`), `{block}` its own block of parameters, `{params}` all parameters.
"""

from stages.config.stage import Stage

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "model",
            "Makes a tiny model from nothing, or pins a given one",
            params=("world", "models.{item}"),
            inputs=("{params.world.code}", "{params.world.builds}", "{params.world.data}"),  # what builds tiny models
            items="models",
        ),
        Stage(
            "questions",
            "Reads or draws questions and splits them",
            params=("world", "questions"),
            inputs=(
                "{params.questions.path}",
                "{params.questions.images}",
            ),  # users' data; for the tiny world the code that generates it
            loads_model=False,
        ),
        Stage(
            "warm_start",
            "SFT of the base student",
            params=("seed", "warm_start"),
            inputs=("data/model/student", "data/questions"),
            ranks=True,
        ),
        Stage(
            "selection",
            "Selects the questions of RIL",
            params=("selection",),
            inputs=("data/model/{params.selection.teacher}", "{params.selection.student}", "data/questions"),
        ),
        Stage(
            "teacher",
            "Answers of one teacher",
            params=("teachers.{item}",),
            inputs=("data/model/{block.model}", "data/questions", "data/selection/kept"),
            items="teachers",
        ),
        Stage(
            "verdict",
            "The judge's verdict on every answer of one teacher",
            params=("verdict",),
            inputs=("data/model/{params.verdict.model}", "data/questions", "data/teacher/{item}"),
            items="teachers",
        ),
        Stage(
            "pool",
            "The teachers' answers that the student learns from",
            params=("pool",),
            inputs=("data/teacher", "data/verdict"),
            loads_model=False,
        ),
        Stage(
            "rollout",
            "Answers of the warm-started student",
            params=("rollout",),
            inputs=("data/warm_start", "data/questions", "data/selection/kept"),
        ),
        Stage(
            "discriminator",
            "Learns to tell student from teacher text",
            params=("seed", "discriminator", "ril.objective"),
            inputs=("data/warm_start", "data/rollout", "data/pool", "data/questions"),
            ranks=True,
        ),
        Stage(
            "ril",
            "Reinforcement and imitation learning of the student",
            params=("seed", "verdict", "discriminator", "ril"),
            inputs=(
                "data/warm_start",
                "data/discriminator",
                "data/pool",
                "data/questions",
                "data/model/{params.verdict.model}",
                "{params.ril.reward_code}",  # the user's reward functions
            ),
            listed=(("data/model/{}", "distilled_models"),),  # DVC notices another teacher by its answers in the pool
            ranks=True,
        ),
        Stage(
            "evaluate",
            "Scores of one model",
            params=("evaluate", "evaluations.{item}"),
            inputs=(
                "{block.checkpoint}",
                "data/questions",
                "data/model/{params.evaluate.judge}",
                "{params.evaluate.folder}",
            ),
            items="evaluations",
        ),
        Stage(
            "report",
            "One page about the run",
            params=(
                "seed",
                "world",
                "models",
                "questions",
                "warm_start",
                "selection",
                "teachers",
                "verdict",
                "pool",
                "rollout",
                "discriminator",
                "ril",
                "evaluate",
                "evaluations",
                "report",
            ),
            inputs=(
                "data/questions",
                "data/evaluate",
                "data/rollout",
                "data/ril/samples",
                "data/ril/model/ril.json",  # cards of models: their hashes
                "data/warm_start/ril.json",
                "data/model",
                "reports/model",  # of every stage: metrics, and accepted code changes
                "reports/questions",
                "reports/warm_start",
                "reports/selection",
                "reports/teacher",
                "reports/verdict",
                "reports/pool",
                "reports/rollout",
                "reports/discriminator",
                "reports/ril",
                "reports/evaluate",
            ),
            loads_model=False,
        ),
    )
}
