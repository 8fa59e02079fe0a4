"""Provenance in the report: a function of the run alone."""

from stages.job.repository import RecordedOut
from stages.page.provenance import list_recorded_outs


def test_the_order_in_which_stages_ended_changes_nothing() -> None:
    paths = ("data/ril", "reports/ril", "data/pool", "data/model/judge")
    outs = {path: RecordedOut(path * 20, 10, 1) for path in paths}
    listed = list_recorded_outs(outs)
    assert [row["path"] for row in listed] == ["data/model/judge", "data/pool", "data/ril"]
    assert listed == list_recorded_outs(dict(reversed(outs.items())))
