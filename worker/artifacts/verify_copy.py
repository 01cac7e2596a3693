"""Verify a copy of an artifact with a full read, and record the verdict."""

import logging
import random
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from worker import clock
from worker.artifacts.stored_digests import stored_sha256_of
from worker.catalogue import Artifact, Catalogue, Copy, FindingKind, FinishedCopy, NewFinding, PageCopy, VerdictRow
from worker.jobs.running_job import RunningJob
from worker.limits.limited_store import LimitedStore
from worker.storage import Verdict, Verification
from worker.storage.errors import NotFound
from worker.storage.integrity.verifying_reader import OnBytes

logger = logging.getLogger(__name__)

BAD = {Verdict.CORRUPT, Verdict.MISSING, Verdict.SIZE_MISMATCH}
"""The verdicts that say that the bytes of a copy are missing or wrong."""
RETRY_UNREADABLE = timedelta(hours=1)
"""The longest time until a copy that could not be read is read again."""
_RETRY_ARCHIVED = (0.7, 0.9)
"""An archived copy is asked for again after a random part of the period between these: one request, and no restore."""
_DETAIL = 500
"""Characters of a verdict's detail in a finding."""


def verify_copy(
    job: RunningJob, artifact: Artifact, copy: Copy, *, on_bytes: OnBytes | None = None
) -> Verification | None:
    """Read all bytes of a copy, record the verdict and return it; None if the copy was replaced meanwhile.

    After one bad read the copy is suspect. The verdict is bad if a second, independent read confirms it. The verdict on
    a copy in a store that is not configured is `unreadable`. `on_bytes` is by default the job's `advance`.

    Raises:
        Snooze: the store takes no job now; nothing is recorded.
    """
    if copy.store not in job.stores:
        seen = Verification(Verdict.UNREADABLE, detail=not_configured(copy.store))
        record_verdict(job, artifact, copy, seen)
        return seen
    store = job.stores[copy.store]
    where = artifact.bucket, artifact.key
    manifest = job.catalogue.artifacts.manifest(artifact)
    with store.slot():
        seen = store.verify_object(*where, artifact.digest, manifest=manifest, on_bytes=on_bytes or job.advance)
        if seen.verdict in BAD:
            findings = job.catalogue.findings
            findings.see([suspicion(artifact, copy.store, seen, job.id)], now=clock.now())
            confirmed = confirm_verdict(job, artifact, copy)
            if confirmed is None:
                findings.end_suspicion(copy.store, *where, now=clock.now())
                return None
            if confirmed.verdict not in BAD:
                what = "%s: %s is %s at the second read, and was %s at the first one"
                logger.warning(what, store.name, artifact.path, confirmed.verdict, seen.verdict)
            same = (confirmed.verdict, confirmed.version) == (seen.verdict, seen.version)
            seen = confirmed._replace(bad=seen.bad) if same else confirmed
    record_verdict(job, artifact, copy, seen)
    return seen


def confirm_verdict(job: RunningJob, artifact: Artifact, copy: Copy) -> Verification | None:
    """Read a suspect copy a second time, independently; None if the copy was replaced meanwhile."""
    store = job.stores[copy.store]
    seen = store.verify_object(artifact.bucket, artifact.key, artifact.digest)
    if seen.verdict not in BAD:
        return seen
    known = job.catalogue.artifacts.copies(artifact)[copy.store]
    return seen if known.state.present and not is_overwritten(job, artifact, store) else None


def is_overwritten(job: RunningJob, artifact: Artifact, store: LimitedStore) -> bool:
    """Return whether the bytes under the key are those of another version, which a job writes and has not recorded."""
    unfinished = job.catalogue.artifacts.unfinished_versions(store.name, artifact.bucket, artifact.key, only_open=True)
    return any(
        store.verify_object(other.bucket, other.key, other.digest).verdict == Verdict.VERIFIED
        for other in unfinished
        if other.id != artifact.id
    )


def verdict_on(
    job: RunningJob, artifact: Artifact, copy: Copy, seen: Verification, evidence: Mapping[str, Any]
) -> VerdictRow:
    """Return what is recorded of a full read of a copy; `evidence` is that of the write of the bytes that were read."""
    stored = stored_sha256_of(job.stores, artifact, copy.store, evidence, seen)
    retry_at = read_again_at(seen.verdict, job.settings.sweep.verify.period_of(copy.store), clock.now())
    return VerdictRow.of(
        job.id, artifact, copy, seen.verdict, found_sha256=seen.sha256, found_size=seen.size, detail=seen.detail,
        tag=seen.version, retry_at=retry_at, stored_sha256=stored,
    )  # fmt: skip


def record_verdict(
    job: RunningJob, artifact: Artifact, copy: Copy, seen: Verification, finished: FinishedCopy | None = None
) -> None:
    """Record what a full read of a copy found; with `finished`, a copy that is not recorded yet, both or neither."""
    verdict = verdict_on(job, artifact, copy, seen, finished.evidence if finished else copy.evidence)
    job.catalogue.verifications.record(verdict, now=clock.now(), finished=finished)
    log_verdict(copy.store, artifact.path, seen)


def version_of_same_bytes(store: LimitedStore, artifact: Artifact, catalogue: Catalogue) -> str | None:
    """Read what is under the key of an artifact; return its version tag if it has the bytes on record, else None.

    Nothing is recorded.

    Raises:
        NotFound: there is no such object.
        StorageError: it cannot be read, and may have them.
    """
    manifest = catalogue.artifacts.manifest(artifact)
    seen = store.verify_object(artifact.bucket, artifact.key, artifact.digest, manifest=manifest)
    if seen.verdict is Verdict.MISSING:
        raise NotFound(f"{store.name}: {artifact.path} does not exist")
    if seen.error:
        raise seen.error
    return seen.version if seen.verdict is Verdict.VERIFIED else None


def log_verdict(store: str, path: str, seen: Verification) -> None:
    """Log a verdict on a copy that is not `verified`."""
    if seen.verdict != Verdict.VERIFIED:
        level = logging.INFO if seen.verdict == Verdict.ARCHIVED else logging.ERROR
        logger.log(level, "%s: %s is %s: %s", store, path, seen.verdict, seen.detail)


def read_again_at(verdict: Verdict, period: timedelta, now: datetime) -> datetime | None:
    """Return when an unreadable or archived copy is read again; None for any other one, which is due by its period."""
    if verdict is Verdict.UNREADABLE:
        return now + min(RETRY_UNREADABLE, period / 10)
    if verdict is Verdict.ARCHIVED:
        return now + period * random.uniform(*_RETRY_ARCHIVED)  # noqa: S311 - it spreads load and protects nothing
    return None


def suspicion(of: Artifact | PageCopy, store: str, seen: Verification, job: str) -> NewFinding:
    """Return the finding about a copy that one read found bad."""
    evidence = {"verdict": seen.verdict.value, "detail": (seen.detail or "")[:_DETAIL], "job": job}
    return NewFinding(FindingKind.SUSPECT, store, of.bucket, of.key, of.version, evidence)


def not_configured(store: str) -> str:
    """Return the message about a copy in a store that is not configured any more."""
    return f"the store {store!r} is not configured: `zot-artifacts status` says whether it was renamed, and the way out"
