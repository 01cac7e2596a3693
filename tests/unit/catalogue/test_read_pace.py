"""How fast pages of sweeps read a store, and when that is too slow for what is due."""

from datetime import timedelta

from tests.unit.catalogue.test_catalogue import begin
from worker import clock
from worker.artifacts.read_budget import pace_of
from worker.catalogue import GRACE
from zot_artifact_client.contract import JobState

PERIOD = timedelta(days=30)


def ended(catalogue, id_, started, finished, objects, store="main", verb="verify"):
    request = {"verb": verb, "claim": {"store": store}}
    lease = {"writes_to": None, "parent": None, "now": started, "lease": timedelta(hours=1)}
    record = catalogue.ledger.acquire(id_, "page", request, owner="me", **lease).record
    catalogue.ledger.finish(id_, record.fence, JobState.SUCCEEDED, now=finished, result={"objects": objects})


def test_the_rate_counts_the_time_in_which_pages_ran(catalogue):
    """Pages that ran at once count their time once, and time without a page, other stores and verbs count nothing."""
    now = clock.now()
    ended(catalogue, "a", now - timedelta(seconds=100), now - timedelta(seconds=90), 1000)
    ended(catalogue, "b", now - timedelta(seconds=95), now - timedelta(seconds=80), 1000)
    ended(catalogue, "c", now - timedelta(seconds=20), now - timedelta(seconds=10), 1000)
    ended(catalogue, "other", now - timedelta(seconds=60), now, 1000, store="dr")
    ended(catalogue, "replicated", now - timedelta(seconds=60), now, 1000, verb="replicate")
    begin(catalogue, "no-page")
    assert catalogue.pages.read_rate("main", since=now - timedelta(hours=1)) == 100
    assert catalogue.pages.read_rate("main", since=now - timedelta(seconds=15)) == 100
    assert catalogue.pages.read_rate("main", since=now) is None


def test_a_rate_that_lets_copies_become_overdue_is_told(catalogue):
    """What is due has to be read in the rest of the period; the warning says both times and the way out."""
    now = clock.now()
    ended(catalogue, "a", now - timedelta(seconds=10), now, 1000)  # 100 a second
    enough = int(100 * (PERIOD * GRACE).total_seconds())
    assert pace_of(catalogue, "main", enough - 1000, period=PERIOD, now=now).warning is None
    warning = pace_of(catalogue, "main", 2 * enough, period=PERIOD, now=now).warning
    assert warning is not None
    assert "main: " in warning
    assert "which takes 6 d; copies become overdue after 3 d" in warning
    assert "sweep.verify.period" in warning
    assert pace_of(catalogue, "dr", 2 * enough, period=PERIOD, now=now).warning is None
