"""Questions: adapters for users' data, canonical rows, and the tiny world."""

from stages.corpora.rows import IMAGE_MARKER, SCHEMA, Question, QuestionFolder, canonical_row, question_of, read_questions

__all__ = ["IMAGE_MARKER", "SCHEMA", "Question", "QuestionFolder", "canonical_row", "question_of", "read_questions"]
