"""Which of the wanted answers the store has, by their keys; no model is loaded.

Keys need the model's card and the questions. Where they are not there yet, nothing counts as stored.
"""

from dataclasses import replace
from pathlib import Path

from flows.estimate.workload import Answers
from stages.config.params import Params
from stages.config.sampling import Sampling
from stages.corpora.kept_questions import StaleSelection, open_kept_questions
from stages.corpora.rows import QuestionFolder
from stages.responses.key import GenerationSpec, hash_model_name
from stages.responses.requested import RequestedAnswers
from stages.responses.store import Store
from stages.vlm.checkpoint import open_checkpoint

MOST_QUESTIONS = 200_000  # whose keys are computed: 2 s. Beyond, nothing counts as stored


class StoredCounts:
    """Looks up the answers of stages whose requests follow from files: teachers and the rollout."""

    def __init__(self, root: Path, store: Path, params: Params) -> None:
        self._root, self._store, self._params = root, store, params

    def fill(self, run: str, asked: Answers) -> Answers:
        """Returns `asked` with the number of its answers that are stored, and how many the files there want."""
        stage, _, item = run.partition("@")
        if stage == "teacher":
            block = self._params.teachers[item]
            return self._look_up(asked, f"data/model/{block.model}", block.sampling, block.draw, block.responses)
        if stage == "rollout":
            of = self._params.rollout
            return self._look_up(asked, "data/warm_start", of.sampling, of.draw, of.responses)
        return asked

    def _look_up(self, asked: Answers, model: str, sampling: Sampling, draw: int, each: int) -> Answers:
        questions = self._open_questions()
        if questions is None or len(questions) > MOST_QUESTIONS:
            return asked
        spec = self._make_spec(self._root / model, sampling, draw)
        asked = replace(asked, count=len(questions) * each, prompts=len(questions))
        if spec is None:
            return asked
        folder = self._store / "responses" / spec.slug
        if not folder.is_dir():
            return asked
        wanted = RequestedAnswers.from_prompts(spec, questions.iter_key_parts(), each)
        stored = wanted.find_stored(Store(folder, lambda said: None))
        fresh = sum(gap.answers for gap in wanted.find_missing(stored))
        return replace(asked, stored=asked.count - fresh)

    def _open_questions(self) -> QuestionFolder | None:
        questions, kept = self._root / "data" / "questions", self._root / "data" / "selection" / "kept"
        if not questions.is_dir() or not kept.is_dir():
            return None
        try:
            return open_kept_questions(questions, kept)
        except (StaleSelection, FileNotFoundError, ValueError):
            return None  # questions and selection do not belong together: selection will run again

    def _make_spec(self, model: Path, sampling: Sampling, draw: int) -> GenerationSpec | None:
        """What the answers of a model have in common; None if the store has none of this model.

        The chat template is read from the tokenizer if the store does not keep it for this version of the code, which
        takes seconds, once.
        """
        try:
            checkpoint = open_checkpoint(model)
        except FileNotFoundError:
            return None
        first = f"{checkpoint.family}-{hash_model_name(checkpoint.identity)}-"
        if not any((self._store / "responses").glob(f"{first}*")):
            return None
        from stages.responses.answers import make_generation_spec  # a third of a second, for all commands

        return make_generation_spec(checkpoint, sampling, draw, self._store)
