"""The RIL loop: its models, the rollouts of a step, validation, and the output files.

Rollouts need the student's engine, the teacher pool and the judge; no lower-level package may import all of them.
"""
