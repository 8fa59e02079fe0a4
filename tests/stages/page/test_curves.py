"""Curves of what only some objectives have."""

from stages.job import metric_names as names
from stages.page.curves import list_student_curves
from stages.page.inputs import History

TITLE = "Reverse KL to the teachers"


def test_the_reverse_kl_of_each_teacher_is_a_line_where_there_is_any() -> None:
    steps = {names.STEP: [1.0, 2.0], names.REVERSE_KL: [0.3, 0.2]}
    of = {names.REVERSE_KL_OF.format(name): [level, 0.1] for name, level in (("big", 0.4), ("wide", 0.2))}
    (found,) = [lines for title, _, lines, _, _ in list_student_curves(History({**steps, **of}), ()) if title == TITLE]
    assert [(line.label, list(line.y)) for line in found] == [("big", [0.4, 0.1]), ("wide", [0.2, 0.1])]
    (none,) = [lines for title, _, lines, _, _ in list_student_curves(History(steps), ()) if title == TITLE]
    assert none == []
