"""How answers to questions are scored: `questions.scorer`, and the same of one source."""

from typing import Literal

ScorerName = Literal["auto", "exact", "anls", "relaxed", "vqa"]
Scoring = Literal["rules", "rules_and_judge"]
