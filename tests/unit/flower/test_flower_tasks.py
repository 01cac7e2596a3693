"""What Flower shows of a job is short, right and never an error."""

from types import SimpleNamespace

import pytest
from celery import Celery
from celery.utils.saferepr import saferepr

from worker.flower.tasks import TaskFormatter, arguments, summary
from worker.jobs.progress import described
from worker.jobs.task import counted
from zot_artifact_client.contract import Progress


def formatter() -> TaskFormatter:
    """Return a formatter whose Redis does not answer."""
    return TaskFormatter(Celery("shown", backend="redis://127.0.0.1:1/0", set_as_current=False))


def task(**fields: object) -> SimpleNamespace:
    return SimpleNamespace(**{"name": "strange", "uuid": "x", "kwargs": None, "exception": None} | fields)


@pytest.mark.parametrize(
    "shown, expected",
    [
        (
            "{'bucket': 'releases', 'key': 'a b', 'stores': ['dr', 'x'], 'schema_version': 1}",
            "releases/a b stores=dr,x",
        ),
        ("{'bucket': 'releases', 'stores': None}", "releases"),
        ("{'bucket': 'releases', 'key': 'cut off...", "{'bucket': 'releases', 'key': 'cut off..."),
        ("17", "17"),
        (17, ""),
    ],
)
def test_arguments_begin_with_the_artifact(shown, expected):
    """A request is its artifact and what else it names; what Celery cut is shown as it is."""
    assert arguments(shown) == expected
    assert len(arguments("(" * 10_000)) < 300


def test_a_result_is_the_outcome_of_each_copy_or_the_counts():
    """Each store is named with its verdict, and what every result has is left out."""
    copies = [{"store": "dr", "verdict": "corrupt"}, {"store": "primary", "outcome": "stored"}]
    assert summary({"bucket": "b", "sha256": "0" * 64, "copies": copies}) == "dr corrupt, primary stored"
    page = {"verb": "verify", "objects": 3, "outcomes": {"verified": 2, "missing": 1}, "failures": [], "failed": 0}
    assert summary(page) == "verb verify, objects 3, outcomes verified 2, missing 1"


def test_a_job_without_a_stored_result_shows_its_verdict():
    """What Celery's event has of such a result is the outcomes alone: the whole of a page's result would be cut off."""
    copies = [{"store": name, "verdict": verdict} for name, verdict in (("a", "verified"), ("b", "corrupt"))]
    page = {"verb": "verify", "range": {"bucket": "b" * 100}, "outcomes": {"verified": 499, "missing": 1}}
    for result, state in (({"copies": copies}, "CORRUPT"), (page, "MISSING")):
        event = saferepr(counted(result), 100)
        shown = formatter().format(task(state="SUCCESS", name="artifact.page.v1", result=event))
        assert (shown.state, shown.result.split()[0]) == (state, "outcomes")
    assert counted({"removed": {}}) == {"removed": {}}


def test_progress_is_shown_as_a_running_job():
    """A reported progress stays STARTED, so that the job can be cancelled, and its text is the result."""
    task = SimpleNamespace(
        state="PROGRESS", name="artifact.upload.v1", uuid="x", kwargs="{}", exception=None, result="45 %"
    )
    formatted = TaskFormatter(Celery("shown", backend="redis://127.0.0.1:1/0", set_as_current=False)).format(task)
    assert (formatted.state, formatted.name, formatted.result) == ("STARTED", "upload", "45 %")


def test_a_result_that_cannot_be_read_leaves_the_event():
    """While Redis does not answer, the page shows what the event has; a failed job shows its message alone."""
    shown = formatter().format(task(state="SUCCESS", name="artifact.verify.v1", result="{…}"))
    assert (shown.state, shown.result) == ("SUCCESS", "{…}")
    failed = {"state": "FAILURE", "exception": "JobFailed('it is away', 'Unavailable')"}
    assert formatter().format(task(**failed)).result == "it is away"
    assert formatter().format(task(**failed | {"exception": "no call"})).result == "no call"


def test_progress_is_told_in_a_few_words():
    """The share of the bytes and the step, or the bytes alone where the total is not known."""
    assert (
        described(Progress(bytes_done=1 << 20, bytes_total=4 << 20, step="writing dr")) == "25 % of 4 MiB, writing dr"
    )
    assert described(Progress(bytes_done=3 << 20)) == "3 MiB"
