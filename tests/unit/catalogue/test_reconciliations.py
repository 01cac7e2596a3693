"""Differences stay recorded until a later run no longer sees them; the copies of a bucket are read in pages."""

from datetime import timedelta

from tests.unit.catalogue.test_coverage import judged
from tests.unit.catalogue.test_store_records import copied
from worker import clock
from worker.catalogue import FindingKind, NewFinding, Sighting, reconciliations
from worker.storage import Digest

HOUR = timedelta(hours=1)


def run_of(catalogue, now, *sightings, counts=True, scope=""):
    """Do one run that sees this, and return what it and an earlier one have seen."""
    run = catalogue.reconciliations.begin("dr", scope, now=now, within=HOUR, since=now)
    catalogue.reconciliations.record(run, sightings)
    twice = catalogue.reconciliations.seen_twice(run, ("", ""))
    catalogue.reconciliations.end(run, "done", counts=counts, now=now)
    return [(each.key, each.kind) for each in twice]


def seen(key, kind=FindingKind.MISSING):
    return Sighting("releases", key, kind, 1, None)


def test_a_difference_counts_when_two_runs_in_a_row_have_seen_it(catalogue):
    """Another kind of difference, a run between that did not see it and a run that was stopped begin anew."""
    now = clock.now()
    assert run_of(catalogue, now, seen("a"), seen("b"), seen("c")) == []
    kind = FindingKind.SIZE_MISMATCH
    assert run_of(catalogue, now + HOUR, seen("a"), seen("b", kind)) == [("a", "missing")]
    assert run_of(catalogue, now + 2 * HOUR, seen("b", kind), seen("c")) == [("b", "size_mismatch")]
    assert run_of(catalogue, now + 3 * HOUR, seen("d"), counts=False) == []
    assert run_of(catalogue, now + 4 * HOUR, seen("d")) == []
    assert run_of(catalogue, now + 5 * HOUR, seen("d")) == [("d", "missing")]
    assert run_of(catalogue, now + 5.5 * HOUR, scope="releases/x") == [], "which says nothing of other keys"
    assert run_of(catalogue, now + 6 * HOUR, seen("d")) == [("d", "missing")]


def test_a_run_is_continued_for_some_time_and_then_begun_anew(catalogue):
    """An unfinished run keeps its place and its counts; an old one is not continued, nor a finished one of another job.

    A finished one of the same job is: a second listing would count as a second sighting.
    """
    now, records = clock.now(), catalogue.reconciliations
    run = records.begin("dr", "", now=now, within=HOUR, since=now)
    run.bucket, run.after, run.listed, run.found = "releases", "k", 7, {"missing": 2}
    records.record(run, [])
    later = now + HOUR / 2
    assert records.begin("dr", "", now=later, within=HOUR, since=later) == run
    assert records.begin("dr", "releases/", now=later, within=HOUR, since=later).listed == 0
    records.end(run, "done", counts=True, now=later)
    assert records.begin("dr", "", now=later, within=HOUR, since=now) == run
    assert records.begin("dr", "", now=later, within=HOUR, since=later).listed == 0
    run = records.begin("dr", "", now=now + 2 * HOUR, within=HOUR, since=now)
    assert run.listed == 0
    run.listed = 7
    records.record(run, [])
    assert records.begin("dr", "", now=now, within=HOUR, since=now).listed == 0, "that of a clock which was ahead"


def test_the_copies_of_a_bucket_are_read_in_pages_by_key(catalogue, monkeypatch):
    """Every copy that the store should have comes once, in the order of bytes; deleted and other ones do not.

    A page may end between a copy and the one that is being written in its place.
    """
    monkeypatch.setattr(reconciliations, "_RECORDED", reconciliations._RECORDED.limit(2))
    monkeypatch.setattr(reconciliations, "_PAGE", 2)
    for key in ("b", "Z", "é", "a/1", "a"):
        copied(catalogue, key, "dr")
    catalogue.artifacts.delete_copies([catalogue.artifacts.copies(copied(catalogue, "gone", "dr"))["dr"]])
    copied(catalogue, "elsewhere", "primary")
    catalogue.artifacts.record("releases", "a", Digest(1, "b" * 64), {}, clock.now(), stores=["dr"])
    read = catalogue.reconciliations.recorded
    assert [each.key for each in read("dr", "releases", "", "")] == ["Z", "a", "a", "a/1", "b", "é"]
    assert [each.key for each in read("dr", "releases", "a", "a")] == ["a/1"]


def test_only_what_no_verdict_has_judged_is_settled_by_a_listing(catalogue):
    """A finding that the run does not see is settled; one that it sees, a later one, or one by a read is not."""
    now = clock.now()
    for key in ("gone", "seen"):
        copied(catalogue, key, "dr")
    found = [NewFinding(FindingKind.MISSING, "dr", "releases", key, 1) for key in ("gone", "seen")]
    catalogue.findings.see([*found, NewFinding(FindingKind.ORPHAN, "dr", "releases", "orphan")], now=now)
    judged(catalogue, copied(catalogue, "judged", "dr", "primary"), "dr", "missing", now=now)
    run = catalogue.reconciliations.begin("dr", "", now=now, within=HOUR, since=now)
    catalogue.findings.see([NewFinding(FindingKind.ORPHAN, "dr", "releases", "later")], now=now + HOUR)
    catalogue.reconciliations.record(run, [seen("seen")])
    keys = {each.key for each in catalogue.reconciliations.settled(run, None, "")}
    assert keys == {"gone", "orphan"}
    assert {
        each.key for each in catalogue.reconciliations.settled(run, "releases", "o")
    } == {"orphan"}  # fmt: skip
