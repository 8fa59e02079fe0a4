"""The RIL loop: the models of all sides, the rollouts of a step, validation, and what is written at the end.

Rollouts need the student's engine, the teachers' pool and the judge; no part below may import all of them.
"""
