"""Sweep evidence: compare what each store says about its copies with what was recorded when they were written."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, groupby, islice

from worker import clock
from worker.artifacts.check_evidence import check_copy, compare_listed
from worker.artifacts.inventories import InventoryListing, requested_inventory
from worker.artifacts.per_store import SingleFailures, for_each_store
from worker.artifacts.reconcile import DisorderedListing, in_order
from worker.catalogue import EvidenceCheck, FindingKind, RecordedEvidence
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task, child_id, send_child
from worker.limits.limited_store import LimitedStore
from worker.storage import ListedObject
from worker.storage.keys import CANARY_BUCKET
from zot_artifact_client.contract import (
    SWEEP_EVIDENCE,
    VERIFY,
    Queue,
    StoreEvidence,
    SweepEvidenceRequest,
    SweepEvidenceResult,
    VerifyRequest,
)

logger = logging.getLogger(__name__)

_GROUP = 1000
_Listed = tuple[ListedObject | None, Mapping[str, str] | None]
_END: _Listed = (None, None)


def sweep_evidence(request: SweepEvidenceRequest, job: RunningJob) -> SweepEvidenceResult:
    """Compare the good copies of each store with its listing, or with its answer about each object.

    An inventory report takes the place of a listing, with the checksums that it has; it counts up to its time. So does
    a completion report of S3 Batch Operations, for the objects whose checksums it has.
    A copy whose row of the listing differs is asked for by itself. What then differs or is absent is read in full, by a
    job of its own, up to a limit for each store. Nothing moves a time of verification. Stores that are paused are left
    out, and what was written during the run is counted as too young. The next attempt of a run that was stopped
    compares no copy again that it found to agree.

    Raises:
        UnknownStore: naming the stores there are.
        StorageError, Snooze: a store does not answer; the others were compared.
    """
    settings = job.settings.sweep.evidence

    def compare(name: str) -> StoreEvidence:
        with requested_inventory(request, name, job) as inventory:
            try:
                return _Comparison(job, job.stores[name], request, inventory).run()
            except DisorderedListing as error:  # the next reconciliation of the whole store resolves it
                evidence, findings = {"detail": error.message}, job.catalogue.findings
                findings.see_store(FindingKind.LISTING_SUSPECT, name, evidence, now=clock.now())
                raise

    names = job.swept_stores(request.store, off=settings.off)
    return SweepEvidenceResult(stores=tuple(for_each_store(names, compare)))


class _Comparison:
    """One run over one store."""

    def __init__(
        self,
        job: RunningJob,
        store: LimitedStore,
        request: SweepEvidenceRequest,
        inventory: InventoryListing | None,
    ) -> None:
        self._job = job
        self._store = store
        self._bucket, self._prefix = request.bucket, request.prefix
        self._settings = job.settings.sweep.evidence
        self._source: str = request.source or self._settings.source
        self._inventory = inventory
        if inventory is not None:
            self._bucket, self._source = request.bucket or inventory.bucket, "inventory"
        self._began = clock.now() if inventory is None else inventory.at
        self._since = job.created_at if job.fence > 1 else None
        """What agrees since then was compared by an earlier attempt."""
        self._sent = self._too_young = 0
        self._failures = SingleFailures()

    def run(self) -> StoreEvidence:
        catalogue, outcomes = self._job.catalogue, Counter[str]()
        # A canary measures how soon a full read finds damage: to compare it here would send that read at once.
        of_users = sorted(set(catalogue.artifacts.buckets()) - {CANARY_BUCKET})
        buckets = of_users if self._bucket is None else [self._bucket]
        for bucket in buckets:
            self._job.step(f"asking {self._store.name} about {bucket}")
            if self._since is not None:
                scope = self._store.name, bucket, self._prefix
                outcomes["agrees"] += catalogue.evidence_checks.count_agreed(*scope, since=self._since)
            checks = self._checks(bucket)
            while group := list(islice(checks, _GROUP)):
                self._job.heartbeat()
                self._job.check()
                if len(group) > 1 and {check.outcome for _, check in group} == {"unknown"}:
                    self._failures.check()  # the store is away, and none of the copies was compared
                catalogue.evidence_checks.record([check for _, check in group], now=clock.now())
                outcomes.update(check.outcome for _, check in group)
                for known, check in group:
                    if check.is_bad:
                        self._read(bucket, known, check)
        return StoreEvidence(
            store=self._store.name, outcomes=dict(outcomes), sent=self._sent, too_young=self._too_young
        )

    def _checks(self, bucket: str) -> Iterator[tuple[RecordedEvidence, EvidenceCheck]]:
        checks, scope = self._job.catalogue.evidence_checks, (self._store.name, bucket, self._prefix)
        recorded = checks.recorded(*scope, since=self._since)
        settled = self._settled(recorded)
        if self._source == "stat":
            for known in settled:
                self._job.heartbeat()
                yield known, check_copy(self._store, bucket, known, self._failures)
            return
        if self._inventory is not None and self._inventory.computed:
            yield from self._computed(bucket, settled, self._inventory)
            return
        if (first := next(settled, None)) is None:
            return
        before = first.key[:-1] if self._since is not None else ""  # sorts before the key itself
        listing = self._listing(bucket, before if before >= self._prefix else "")
        there, checksums = next(listing, _END)
        for known in chain([first], settled):
            while there is not None and there.key < known.key:
                there, checksums = next(listing, _END)
            found = None
            if there is not None and there.key == known.key:
                found = compare_listed(known, there, checksums)
                if found.outcome != "agrees" and clock.is_since(there.modified, self._began):
                    self._too_young += 1  # it is being written, or was after the report
                    continue
            if found is None or found.outcome != "agrees":
                found = check_copy(self._store, bucket, known, self._failures)
            yield known, found

    def _computed(
        self, bucket: str, settled: Iterator[RecordedEvidence], report: InventoryListing
    ) -> Iterator[tuple[RecordedEvidence, EvidenceCheck]]:
        """Compare the copies that a report has checksums of; it says nothing about the others.

        A checksum of the recorded version is computed from the bytes, so that what the store says of the object does
        not outweigh it. A row of another version is asked for.
        """
        rows = groupby(report.with_checksums(bucket, self._prefix), lambda row: row[0].key)
        key, versions = next(rows, (None, None))
        for known in settled:
            while key is not None and key < known.key:
                key, versions = next(rows, (None, None))
            if key != known.key or versions is None:
                continue
            found = list(versions)
            key, versions = next(rows, (None, None))
            of_copy = next((each for each in found if each[0].version in {"", known.tag}), None)
            if of_copy is None:
                yield known, check_copy(self._store, bucket, known, self._failures)
            else:
                yield known, replace(compare_listed(known, *of_copy), source="checksum_report")

    def _settled(self, recorded: Iterator[RecordedEvidence]) -> Iterator[RecordedEvidence]:
        for each in recorded:
            if each.read_at is None or each.read_at < self._began:
                yield each
            else:
                self._too_young += 1

    def _listing(self, bucket: str, after: str) -> Iterator[_Listed]:
        if self._inventory is not None:
            yield from self._inventory.with_checksums(bucket, self._prefix)
        else:
            listed = self._store.list_objects(bucket, self._prefix, after=after)
            yield from ((each, None) for each in in_order(self._store.name, listed))

    def _read(self, bucket: str, known: RecordedEvidence, check: EvidenceCheck) -> None:
        logger.warning("%s: %s/%s: %s", self._store.name, bucket, known.key, check.detail)
        if self._sent >= self._settings.batch:
            return
        self._sent += 1
        verify = VerifyRequest(bucket=bucket, key=known.key, stores=(self._store.name,), version=known.version)
        id_ = child_id(f"{self._job.id} {known.copy_id}")
        send_child(VERIFY, verify, id_=id_, parent=self._job.id, queue=Queue.SWEEP)


sweep_evidence_task = artifact_task(SWEEP_EVIDENCE, writes=False)(sweep_evidence)
