"""A verdict opens a finding and another one resolves it; each copy has at most one."""

import logging
from datetime import timedelta

import pytest
import sqlalchemy as sa

from tests.unit.catalogue.test_coverage import judged
from tests.unit.catalogue.test_store_records import copied
from worker import clock
from worker.catalogue import BAD, FindingKind, Group, VerdictRow, compiled_statements
from worker.storage import Digest

HOUR = timedelta(hours=1)


def kinds(catalogue, **wanted):
    """Return the open findings by kind, store and key, or with `resolved` all of them."""
    return [(each.kind, each.store, each.key) for each in catalogue.findings.page(**wanted)]


@pytest.fixture
def artifact(catalogue):
    return copied(catalogue, "app.tgz", "primary", "dr")


@pytest.mark.parametrize("verdict", [*BAD, "unreadable"])
def test_a_verdict_opens_one_finding_with_its_evidence(catalogue, artifact, verdict):
    """A second verdict of the same kind is the same finding, seen once more; a right read resolves it with its job."""
    copied(catalogue, "right", "primary", "dr")
    then = clock.now() - HOUR
    judged(catalogue, artifact, "dr", verdict, now=then)
    judged(catalogue, artifact, "dr", verdict)
    [found] = catalogue.findings.page()
    assert (found.kind, found.store, found.bucket, found.key, found.version) == (
        verdict, "dr", "releases", "app.tgz", 1,
    )  # fmt: skip
    assert (found.opened_at, found.resolved_at) == (then, None)
    assert found.last_seen_at > then
    assert found.evidence["job"] == "job-1"
    judged(catalogue, artifact, "dr", "verified")
    assert catalogue.findings.page() == []
    resolved = catalogue.findings.get(found.id)
    assert (resolved.how, resolved.resolved_at > then) == ("verified by job job-1", True)
    judged(catalogue, artifact, "dr", verdict)
    assert [each.id == found.id for each in catalogue.findings.page()] == [False]


def test_another_verdict_resolves_the_one_before(catalogue, artifact):
    """A copy that was corrupt and is gone now is missing; one that cannot be read stays what it was."""
    judged(catalogue, artifact, "dr", "corrupt")
    judged(catalogue, artifact, "dr", "missing")
    judged(catalogue, artifact, "dr", "unreadable")
    assert kinds(catalogue) == [("missing", "dr", "app.tgz"), ("unreadable", "dr", "app.tgz")]
    judged(catalogue, artifact, "dr", "verified")
    assert kinds(catalogue) == []
    assert len(kinds(catalogue, resolved=True)) == 3


def test_a_write_and_a_delete_resolve_the_findings_of_the_copy(catalogue):
    """A copy that was written again, replaced, deleted or forgotten has no finding; those of other copies stay."""
    ways = ("written", "replaced", "deleted", "forgotten", "kept")
    for key in ways:
        judged(catalogue, copied(catalogue, key, "primary", "dr"), "dr", "corrupt")
    of = {key: catalogue.artifacts.current("releases", key) for key in ways}
    now = clock.now()
    catalogue.artifacts.finish_copy(of["written"], "dr", tag="2", evidence={}, now=now)
    newer = catalogue.artifacts.record("releases", "replaced", Digest(1, "b" * 64), {}, now, stores=["dr"]).artifact
    catalogue.artifacts.finish_copy(newer, "dr", tag="2", evidence={}, now=now)
    catalogue.artifacts.delete_copies([catalogue.artifacts.copies(of["deleted"])["dr"]])
    how = {each.key: each.how for each in catalogue.findings.page(resolved=True)}
    assert how == {
        "written": "written", "replaced": "replaced by version 2", "deleted": "deleted",
        "forgotten": None, "kept": None,
    }  # fmt: skip
    catalogue.artifacts.delete_copies([catalogue.artifacts.copies(of["kept"])["primary"]])
    assert kinds(catalogue) == [("corrupt", "dr", "forgotten"), ("corrupt", "dr", "kept")]
    catalogue.store_records.forget("dr", dry_run=False, force=True)
    assert kinds(catalogue) == []


def test_an_artifact_without_a_good_copy_is_lost_loudly(catalogue, artifact, caplog):
    """The verdict that leaves no good copy opens `lost` and logs it as critical; a right read resolves it."""
    judged(catalogue, artifact, "dr", "corrupt")
    assert kinds(catalogue, kind=FindingKind.LOST) == []
    with caplog.at_level(logging.CRITICAL):
        judged(catalogue, artifact, "primary", "missing")
    assert "releases/app.tgz version 1 is lost" in caplog.text
    assert kinds(catalogue, kind=FindingKind.LOST) == [("lost", None, "app.tgz")]
    caplog.clear()
    judged(catalogue, artifact, "primary", "missing")
    assert caplog.text == ""
    judged(catalogue, artifact, "dr", "verified")
    assert kinds(catalogue) == [("missing", "primary", "app.tgz")]


def test_what_was_lost_is_resolved_by_a_write_a_newer_version_or_a_delete(catalogue):
    """An artifact that was uploaded again, replaced or deleted is not lost any more."""
    for key in ("same", "newer", "deleted"):
        made = copied(catalogue, key, "primary")
        judged(catalogue, made, "primary", "missing")
    assert len(kinds(catalogue, kind=FindingKind.LOST)) == 3
    of = {key: catalogue.artifacts.current("releases", key) for key in ("same", "newer", "deleted")}
    now = clock.now()
    catalogue.artifacts.ensure_copy(of["same"], "dr")
    catalogue.artifacts.finish_copy(of["same"], "dr", tag="1", evidence={}, now=now)
    newer = catalogue.artifacts.record("releases", "newer", Digest(1, "b" * 64), {}, now, stores=["dr"]).artifact
    catalogue.artifacts.finish_copy(newer, "dr", tag="2", evidence={}, now=now)
    catalogue.artifacts.tombstone(of["deleted"], now)
    assert kinds(catalogue, kind=FindingKind.LOST) == []


def test_a_sweep_finds_what_became_lost_without_a_verdict(catalogue, artifact):
    """A delete of the last good copy leaves a lost artifact, which `see_lost` opens once."""
    judged(catalogue, artifact, "dr", "corrupt")
    catalogue.artifacts.delete_copies([catalogue.artifacts.copies(artifact)["primary"]])
    assert kinds(catalogue, kind=FindingKind.LOST) == []
    for _ in range(2):
        assert catalogue.findings.see_lost(["primary", "dr"], now=clock.now(), limit=10) == 1
    assert kinds(catalogue, kind=FindingKind.LOST) == [("lost", None, "app.tgz")]


def right_reads(catalogue, made):
    """Return what a page records of copies that it has found right."""
    found = [(each, catalogue.artifacts.copies(each)["dr"]) for each in made]
    rows = [VerdictRow.of("job-2", each, copy, "verified") for each, copy in found]
    return Group([], rows)


def test_more_open_findings_than_one_search_returns_are_resolved_too(catalogue, monkeypatch):
    """A group of right reads resolves its own findings, however many of other keys are between."""
    monkeypatch.setattr("worker.catalogue.findings._FEW", 1)
    made = [copied(catalogue, f"k{number}", "dr") for number in range(4)]
    for each in made:
        judged(catalogue, each, "dr", "corrupt")
    now = clock.now()
    catalogue.pages.record(catalogue.pages.begin("job-2", []), right_reads(catalogue, [made[0], made[3]]), now=now)
    corrupt = kinds(catalogue, kind=FindingKind.CORRUPT)
    assert corrupt == [("corrupt", "dr", "k1"), ("corrupt", "dr", "k2")]


def test_a_verdict_that_is_not_recorded_opens_nothing(catalogue, artifact, monkeypatch):
    """The finding is of the verdict's own transaction: when that fails, neither is there."""
    monkeypatch.setattr("worker.catalogue.findings._see_lost", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        judged(catalogue, artifact, "dr", "corrupt")
    assert catalogue.findings.page() == []
    assert catalogue.verifications.of("releases", "app.tgz") == []


def test_right_reads_ask_once_a_group_and_write_no_finding(catalogue, catalogue_url, monkeypatch):
    """A group of verified copies costs one search of the findings, however large it is."""
    made = [copied(catalogue, f"k{number}", "dr") for number in range(50)]
    right, page, seen = right_reads(catalogue, made), catalogue.pages.begin("job-2", []), []

    def listen(_connection, _cursor, statement, *_):
        seen.append(statement)

    unheard = compiled_statements.execute

    def execute(connection, text, values, **more):
        seen.append(text)
        return unheard(connection, text, values, **more)

    monkeypatch.setattr("worker.catalogue.compiled_statements.execute", execute)
    catalogue.close()  # so that its next connection has the listener
    sa.event.listen(sa.engine.Engine, "before_cursor_execute", listen)
    try:
        catalogue.pages.record(page, right, now=clock.now())
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", listen)
    assert len([each for each in seen if "findings" in each]) == 1, catalogue_url


def test_a_claimed_repair_is_the_action_of_the_finding(catalogue, artifact):
    """The finding names the job that repairs its copy, from the transaction that claims the copy."""
    judged(catalogue, artifact, "dr", "corrupt")
    now = clock.now()
    [_] = catalogue.repairs.claim("dr", sources=["primary", "dr"], now=now, until=now + HOUR, limit=10, job="repair-1")
    [found] = catalogue.findings.page()
    assert (found.action, found.job, found.acted_at) == ("repair", "repair-1", now)


def test_an_untrusted_store_is_a_finding_until_it_is_trusted(catalogue):
    """`distrust` opens it with the reason, and `trust` resolves it."""
    catalogue.repairs.distrust("dr", reason="too many", now=clock.now())
    [found] = catalogue.findings.page()
    assert (found.kind, found.store, found.bucket, found.evidence) == (
        "store_untrusted", "dr", None, {"reason": "too many"},
    )  # fmt: skip
    catalogue.repairs.trust("dr", now=clock.now())
    assert kinds(catalogue) == []


def test_an_acknowledged_finding_stays_open_and_is_counted_apart(catalogue, artifact):
    """The note and its author are kept, and the counts tell acknowledged and acted ones."""
    judged(catalogue, artifact, "dr", "corrupt")
    judged(catalogue, artifact, "primary", "unreadable")
    [corrupt, _] = catalogue.findings.page()
    acknowledged = catalogue.findings.acknowledge(corrupt.id, by="ana", note="disk is ordered", now=clock.now())
    assert (acknowledged.acknowledged_by, acknowledged.note, acknowledged.resolved_at) == (
        "ana", "disk is ordered", None,
    )  # fmt: skip
    counts = {
        (each.kind, each.store): (each.count, each.acknowledged, each.acted) for each in catalogue.findings.counts()
    }
    assert counts == {("corrupt", "dr"): (1, 1, 0), ("unreadable", "primary"): (1, 0, 0)}
    assert catalogue.findings.acknowledge(999, by="ana", note="none", now=clock.now()) is None


def test_only_resolved_findings_are_pruned(catalogue, artifact):
    """An open finding is never forgotten; a resolved one is when it is old enough."""
    judged(catalogue, artifact, "dr", "corrupt", now=clock.now() - 3 * HOUR)
    assert catalogue.findings.prune(before=clock.now()) == 0
    judged(catalogue, artifact, "dr", "verified", now=clock.now() - 2 * HOUR)
    assert catalogue.findings.prune(before=clock.now() - 3 * HOUR) == 0
    assert catalogue.findings.prune(before=clock.now()) == 1
    assert catalogue.findings.page(resolved=True) == []


def test_the_finding_of_a_store_is_opened_updated_and_resolved(catalogue):
    """There is one for a store and a kind; without evidence it is resolved."""
    kind, now = FindingKind.OVERDUE, clock.now()
    for count in (3, 5):
        catalogue.findings.see_store(kind, "dr", {"copies": count}, now=now)
    assert [each.evidence for each in catalogue.findings.page()] == [{"copies": 5}]
    for _ in range(2):
        catalogue.findings.see_store(kind, "dr", None, now=now)
    assert kinds(catalogue) == []
