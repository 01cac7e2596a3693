"""A bad copy is claimed for repair once, and a store with too many bad copies is untrusted until `trust`."""

from datetime import timedelta

import pytest

from tests.unit.catalogue.test_coverage import judged
from tests.unit.catalogue.test_store_records import copied
from worker import clock
from worker.catalogue import FindingKind, NewFinding, repairs
from worker.storage import Digest
from worker.storage.keys import CANARY_BUCKET

HOUR = timedelta(hours=1)


@pytest.fixture
def claim(catalogue):
    """Return what claims copies in `dr` and returns the keys of their artifacts."""

    def claim(*sources, now=None):
        now = now or clock.now()
        found = catalogue.repairs.claim(
            "dr", sources=sources or ["primary", "dr"], now=now, until=now + HOUR, limit=10, job="page"
        )
        return sorted(artifact.key for artifact in found)

    return claim


def test_a_bad_copy_with_a_good_one_elsewhere_is_claimed_once(catalogue, claim, monkeypatch):
    """Good copies, lost artifacts, and copies without a source or repaired just now are not claimed; a claim ends."""
    _, bad, lost = (copied(catalogue, key, "primary", "dr") for key in ("good", "bad", "lost"))
    judged(catalogue, bad, "dr", "missing")
    for store in ("primary", "dr"):
        judged(catalogue, lost, store, "corrupt")
    assert claim("dr", "elsewhere") == []
    assert catalogue.repairs.count_repairable("dr", sources=["primary", "dr"]) == 1
    assert claim() == ["bad"]
    assert claim() == []
    assert claim(now=clock.now() + 2 * HOUR) == ["bad"]
    find = repairs.artifact_of
    monkeypatch.setattr(repairs, "artifact_of", lambda row: judged(catalogue, bad, "dr", "verified") or find(row))
    assert claim(now=clock.now() + 4 * HOUR) == []


def test_only_copies_of_the_current_version_are_claimed(catalogue, claim):
    """A bad copy of a version that was replaced or deleted is no reason to write another version there."""
    old, gone = copied(catalogue, "old", "primary", "dr"), copied(catalogue, "gone", "primary", "dr")
    for artifact in (old, gone):
        judged(catalogue, artifact, "dr", "corrupt")
    catalogue.artifacts.tombstone(gone, clock.now())
    newer = catalogue.artifacts.record(
        "releases", "old", Digest(1, "b" * 64), {}, clock.now(), stores=["cold"]
    ).artifact
    catalogue.artifacts.finish_copy(newer, "cold", tag="1", evidence={}, now=clock.now())
    assert claim("primary", "cold") == []


def test_wrong_metadata_is_claimed_while_it_is_open_and_of_the_current_version(catalogue):
    """A finding that was resolved, or is of another version, is no reason to write a good copy again.

    Bytes that are bad are no source of themselves.
    """
    now = clock.now()
    found = {key: copied(catalogue, key, "dr") for key in ("open", "resolved", "older", "bad")}
    judged(catalogue, found["bad"], "dr", "corrupt", now=now)
    versions = {key: artifact.version + (key == "older") for key, artifact in found.items()}
    wrong = [NewFinding(FindingKind.METADATA, "dr", "releases", key, version) for key, version in versions.items()]
    catalogue.findings.see(wrong, now=now)
    resolved = [row.id for row in catalogue.findings.page(limit=9) if row.key == "resolved"]
    catalogue.findings.resolve(resolved, "by an operator", now=now)
    assert catalogue.repairs.count_wrong_metadata("dr") == 1
    asked = {"sources": ["dr"], "now": now, "until": now + HOUR, "limit": 10, "job": "page"}
    assert [artifact.key for artifact in catalogue.repairs.claim("dr", metadata=True, **asked)] == ["open"]


def test_bad_copies_are_counted_once_each_and_by_their_time(catalogue):
    """A copy that was found bad twice counts once, a repaired one counts, one from before the window does not.

    A copy of another store does not count either.
    """
    now = clock.now()
    keys = ("twice", "repaired", "old", "elsewhere")
    twice, repaired, old, elsewhere = (copied(catalogue, key, "primary", "dr") for key in keys)
    judged(catalogue, old, "dr", "corrupt", now=now - 2 * HOUR)
    for artifact in (twice, twice, repaired):
        judged(catalogue, artifact, "dr", "corrupt", now=now)
    judged(catalogue, repaired, "dr", "verified", now=now)
    judged(catalogue, elsewhere, "primary", "missing", now=now)
    assert catalogue.repairs.count_bad("dr", since=now - HOUR, limit=10) == 2
    assert catalogue.repairs.count_bad("dr", since=now - HOUR, limit=1) == 1
    assert catalogue.repairs.count_bad("dr", since=now - 3 * HOUR, limit=10) == 3


def test_a_store_stays_untrusted_until_it_is_trusted(catalogue):
    """The reason is kept; trust ends it, and what was found bad before counts no more."""
    now = clock.now()
    judged(catalogue, copied(catalogue, "bad", "primary", "dr"), "dr", "corrupt", now=now - HOUR)
    assert catalogue.repairs.untrusted() == {}
    catalogue.repairs.distrust("dr", reason="too many", now=now)
    assert catalogue.repairs.untrusted() == {"dr": "too many"}
    assert catalogue.repairs.trust("dr", now=now) is True
    assert catalogue.repairs.untrusted() == {}
    assert catalogue.repairs.trust("dr", now=now) is False
    assert catalogue.repairs.count_bad("dr", since=now - 2 * HOUR, limit=10) == 0
    for bucket, count in ((CANARY_BUCKET, 0), ("releases", 1)):  # canaries are damaged by the worker itself
        artifact = catalogue.artifacts.record(bucket, "new", Digest(1, "a" * 64), {}, now, stores=["dr"]).artifact
        judged(catalogue, artifact, "dr", "corrupt", now=now + HOUR)
        assert catalogue.repairs.count_bad("dr", since=now - 2 * HOUR, limit=10) == count
