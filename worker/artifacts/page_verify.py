"""Verify the copies of a page: each is read once, and one that looks bad a second time at the end of the page."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from worker import clock
from worker.artifacts.artifact_job import BAD, RETRY_UNREADABLE, ArtifactJob
from worker.artifacts.page import GROUP, work_on
from worker.catalogue import Group, Page, PageCopy, PageOutcome, VerdictRow
from worker.context import JobContext
from worker.jobs.running_job import RunningJob
from worker.storage import Verdict, Verification

logger = logging.getLogger(__name__)

SUPERSEDED = "superseded"
"""The outcome of a copy that was replaced while the page ran: there is no verdict on it."""


@dataclass(slots=True)
class VerifyPage:
    """A page of copies of one store, claimed by it."""

    context: JobContext
    job: RunningJob
    page: Page
    store: str

    def run(self, copies: Sequence[PageCopy]) -> Page:
        """Read all copies and record a verdict for each; return the page after that.

        Raises:
            Snooze: the store takes no job now; the copies that were read have their verdicts.
        """
        suspects: list[PageCopy] = []

        def record(seen: Sequence[tuple[PageCopy, Verification]]) -> None:
            suspects.extend(copy for copy, each in seen if each.verdict in BAD)
            self._record([(copy, each) for copy, each in seen if each.verdict not in BAD])

        work_on(copies, self._read, record, threads=self.context.settings.page.threads)
        order = {copy.id: number for number, copy in enumerate(copies)}
        suspects.sort(key=lambda copy: order[copy.id])
        for start in range(0, len(suspects), GROUP):
            self._record([(copy, self._read_again(copy)) for copy in suspects[start : start + GROUP]])
        return self.page

    def _read(self, part: Sequence[PageCopy]) -> Iterator[tuple[PageCopy, Verification]]:
        store = self.context.stores[self.store]
        wanted = [(copy.bucket, copy.key, copy.digest) for copy in part]
        yield from zip(part, store.verify_objects(wanted), strict=True)
        self.job.advance(sum(copy.digest.size for copy in part))

    def _read_again(self, copy: PageCopy) -> Verification | None:
        """Read a suspect copy a second time; None if it was replaced meanwhile."""
        logger.warning("%s: %s/%s is suspect, reading it again", copy.store, copy.bucket, copy.key)
        self.job.heartbeat()
        artifacts = self.context.catalogue.artifacts
        artifact = artifacts.version(copy.bucket, copy.key, copy.version)
        known = artifacts.copies(artifact).get(copy.store) if artifact else None
        if artifact is None or known is None:
            return None
        return ArtifactJob(self.context, self.job, artifact).confirm(known)

    def _record(self, seen: Sequence[tuple[PageCopy, Verification | None]]) -> None:
        if not seen:
            return
        now = clock.now()
        retry_at = now + min(RETRY_UNREADABLE, self.context.settings.sweep.verify.period_of(self.store) / 10)
        verdicts = [_verdict(self.job.id, copy, each, retry_at) for copy, each in seen if each is not None]
        outcomes = [_outcome(copy, each) for copy, each in seen]
        self.page = self.context.catalogue.pages.record(self.page, Group(outcomes, verdicts), now=now)


def _verdict(job: str, copy: PageCopy, seen: Verification, retry_at: datetime) -> VerdictRow:
    if seen.verdict is Verdict.VERIFIED:
        return VerdictRow(
            copy.id, job, copy.store, copy.bucket, copy.key, copy.version, "verified", copy.digest.sha256,
            seen.sha256, seen.size, None, seen.version,
        )  # fmt: skip
    logger.error("%s: %s/%s is %s: %s", copy.store, copy.bucket, copy.key, seen.verdict, seen.detail)
    return VerdictRow(
        copy.id, job, copy.store, copy.bucket, copy.key, copy.version, seen.verdict.value, copy.digest.sha256,
        seen.sha256, seen.size, seen.detail, seen.version,
        retry_at if seen.verdict is Verdict.UNREADABLE else None,
    )  # fmt: skip


def _outcome(copy: PageCopy, seen: Verification | None) -> PageOutcome:
    path = f"{copy.bucket}/{copy.key}"
    if seen is None:
        return PageOutcome(copy.id, path, copy.digest.size, SUPERSEDED)
    if seen.verdict is Verdict.VERIFIED:
        return PageOutcome(copy.id, path, copy.digest.size, "verified")
    failure = f"{copy.store}: {seen.detail or seen.verdict}"
    return PageOutcome(copy.id, path, copy.digest.size, seen.verdict.value, failure)
