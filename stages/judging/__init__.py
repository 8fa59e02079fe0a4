"""The judge: prompts, parsing of verdicts, rule-based verdicts, the exam."""
