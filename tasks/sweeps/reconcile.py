"""Sweep reconcile: compare what each store lists with what the catalogue records; report, and change nothing."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from worker import clock
from worker.artifacts.inventories import InventoryListing, requested_inventory
from worker.artifacts.per_store import SingleFailures, for_each_store
from worker.artifacts.reconcile import DisorderedListing, buckets_to_compare, compare
from worker.catalogue import FindingKind, NewFinding, ReconcileRun, SettledFinding, Sighting, count_present
from worker.counted import counted
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task, child_id, send_child
from worker.limits.limited_store import LimitedStore
from worker.storage.errors import NotFound, StorageError
from zot_artifact_client.contract import (
    PAGE,
    SWEEP_RECONCILE,
    VERIFY,
    ClaimSelection,
    PageRequest,
    Queue,
    ReconciledStore,
    SweepReconcileRequest,
    SweepReconcileResult,
    VerifyRequest,
)

logger = logging.getLogger(__name__)

_FEW = 20
"""Up to this number, missing objects say nothing about a listing, whatever their share is."""
_NAMED = 5
"""Objects that a finding about a listing names."""
_PART = 2000
"""Keys that are compared between two records of where the run is."""


def sweep_reconcile(request: SweepReconcileRequest, job: RunningJob) -> SweepReconcileResult:
    """Compare the listing of each bucket that the store lists or the catalogue records with its copies, both ways.

    A difference that two runs have seen, and that a request for the object confirms, is a finding. A missing object or
    one of another size is verified; an orphan is adopted if the settings say so. A run stops and counts for nothing if
    the listing lacks too many recorded objects. A listing that ends with an error counts for nothing either: the next
    attempt continues after the last key that was compared, and does not list again the stores that were compared to the
    end. Stores that are paused are left out. A listing in no order, or one that twice lacks an object which the store
    has, is a finding about the store.

    An inventory report takes the place of the listing: it is read and checked to its end before a key is compared, what
    changed after its time is no difference, and the same report is never a second sighting.

    Raises:
        UnknownStore: naming the stores there are.
        BadInventory: the report is incomplete, damaged, or of another bucket; nothing was compared.
        StorageError, Snooze: a store could not be listed; the others were.
    """
    settings = job.settings.sweep.reconcile

    def reconcile(name: str) -> ReconciledStore:
        with requested_inventory(request, name, job) as inventory:
            return _Reconciliation(job, job.stores[name], request, inventory).run()

    names = job.swept_stores(request.store, off=settings.off)
    return SweepReconcileResult(stores=tuple(for_each_store(names, reconcile)))


class _Reconciliation:
    """One run over one store."""

    def __init__(
        self,
        job: RunningJob,
        store: LimitedStore,
        request: SweepReconcileRequest,
        inventory: InventoryListing | None,
    ) -> None:
        self._job = job
        self._store = store
        self._settings = job.settings.sweep.reconcile
        self._bucket, self._prefix = request.bucket, request.prefix
        if inventory is not None and inventory.bucket is not None:
            self._bucket = inventory.bucket
        self._inventory = inventory
        self._records = job.catalogue.reconciliations
        self._failures = SingleFailures()
        scope = "" if self._bucket is None else f"{self._bucket}/{self._prefix}"
        at = inventory.at if inventory else None
        self._unlisted: list[str] = []
        """Objects that two listings lack and the store has."""
        self._run = self._records.begin(
            store.name, scope, now=clock.now(), within=self._settings.resume, since=job.created_at, at=at
        )

    def run(self) -> ReconciledStore:
        if self._compare_buckets():
            return self._stop()
        opened, sent = self._confirm()
        self._resolve()
        self._judge_listing()
        self._records.end(self._run, "compared to the end", counts=True, now=clock.now())
        return _result(self._run, opened, sent)

    def _compare_buckets(self) -> bool:
        """Compare each bucket; return whether so much is missing that the listing cannot be right."""
        run, catalogue = self._run, self._job.catalogue
        present = count_present(catalogue.artifacts.count_by_state().get(run.store, {}))
        buckets = buckets_to_compare(self._store, catalogue) if self._bucket is None else [self._bucket]
        for bucket in (bucket for bucket in buckets if bucket >= run.bucket):
            if bucket != run.bucket:
                run.bucket, run.after = bucket, ""
            try:
                unlikely = self._compare(bucket, present if self._bucket is None else None)
            except DisorderedListing as error:
                self._suspect({"detail": error.message})
                raise
            if unlikely:
                return True
        return run.count(FindingKind.MISSING) > self._most(run.recorded)

    def _compare(self, bucket: str, present: int | None) -> bool:
        """Compare a bucket; return whether so much is missing that the listing cannot be right."""
        run, seen = self._run, list[Sighting]()
        most_orphans = 0 if self._settings.orphans == "ignore" else self._settings.most_orphans
        self._job.step(f"comparing {run.store}/{bucket}")
        listing = compare(
            self._inventory or self._store, self._job.catalogue, bucket, self._prefix, run.after, run=run.run
        )
        for number, each in enumerate(listing, 1):
            run.listed += each.listed
            run.recorded += each.recorded
            run.after = each.key
            if each.known is not None:
                run.known[each.known] = run.known.get(each.known, 0) + 1
            if each.sighting is not None:
                kind = each.sighting.kind
                run.found[kind] = run.count(kind) + 1
                if kind is not FindingKind.ORPHAN or run.count(kind) <= most_orphans:
                    seen.append(each.sighting)
            if number % _PART == 0:
                self._job.heartbeat()
                self._job.check()
                self._records.record(run, seen)
                seen = []
                if present is not None and run.count(FindingKind.MISSING) > self._most(present):
                    return True
        self._records.record(run, seen)
        return False

    def _most(self, recorded: int) -> int:
        return max(_FEW, int(recorded * self._settings.missing_percent / 100))

    def _stop(self) -> ReconciledStore:
        run = self._run
        missing = run.count(FindingKind.MISSING)
        why = (
            f"the {'inventory' if self._inventory else 'listing'} lacks {counted(missing, 'object')} of the catalogue, "
            "more than sweep.reconcile.missing_percent allows: it may be incomplete or of another place; "
            "nothing was changed"
        )
        logger.error("store %s: %s", run.store, why)
        evidence = {"detail": why, "missing": missing, "listed": run.listed, "recorded": run.recorded}
        self._suspect(evidence)
        self._records.end(run, why, counts=False, now=clock.now())
        return _result(run, {}, stopped=why)

    def _confirm(self) -> tuple[dict[str, int], int]:
        """Open a finding for what two runs have seen and the store confirms now.

        Returns:
            How many findings there are, by kind, and how many jobs were sent to verify or adopt objects.
        """
        opened: dict[str, int] = {}
        acted, sent, after = 0, 0, ("", "")
        while some := self._records.seen_twice(self._run, after):
            after = some[-1].bucket, some[-1].key
            true = []
            for each in some:
                self._job.heartbeat()
                self._job.check()
                if self._is_true(each):
                    true.append(each)
                    opened[each.kind] = opened.get(each.kind, 0) + 1
            self._see(true)
            acting = [each for each in true if self._acts(each)][: self._settings.batch - acted]
            acted += len(acting)
            sent += self._act(acting)
        return opened, sent

    def _is_true(self, seen: Sighting) -> bool | None:
        """Ask the store and the catalogue again about one key; return None if the store does not tell."""
        artifacts, store = self._job.catalogue.artifacts, self._store
        held = artifacts.version_in_store(store.name, seen.bucket, seen.key)
        is_orphan = seen.kind is FindingKind.ORPHAN  # the cleanup removes what an ended job has left
        if artifacts.unfinished_versions(store.name, seen.bucket, seen.key, only_open=not is_orphan):
            return False
        try:
            size = store.stat_object(seen.bucket, seen.key).size
        except NotFound:
            self._failures.ended()
            return seen.kind is FindingKind.MISSING and held is not None and held[0].version == seen.version
        except StorageError as error:
            logger.warning("%s: %s/%s: %s is not confirmed: %s", store.name, seen.bucket, seen.key, seen.kind, error)
            self._failures.add(error)
            return None
        self._failures.ended()
        if is_orphan:
            return held is None
        if held is None or held[0].version != seen.version:
            return False
        if seen.kind is FindingKind.MISSING and held[1].read_at is not None and held[1].read_at < self._run.run:
            self._unlisted.append(f"{seen.bucket}/{seen.key}")  # no repair has brought it back since the listing
        return seen.kind is FindingKind.SIZE_MISMATCH and held[0].digest.size != size

    def _see(self, true: Sequence[Sighting]) -> None:
        store, run = self._store.name, self._run
        found = [
            NewFinding(
                each.kind, store, each.bucket, each.key, each.version,
                {"listed_size": each.size, "first_seen": str(each.first_run), "job": self._job.id,
                 "detail": f"the listings of two runs show it, the last of {run.run:%Y-%m-%d %H:%M:%S} UTC"},
            )
            for each in true
        ]  # fmt: skip
        self._job.catalogue.findings.see(found, now=clock.now())

    def _acts(self, seen: Sighting) -> bool:
        return seen.kind is not FindingKind.ORPHAN or self._settings.orphans.startswith("adopt")

    def _act(self, true: Sequence[Sighting]) -> int:
        """Send a job for each copy to verify, and a page for some hundred orphans to adopt; return how many jobs."""
        store, findings = self._store.name, self._job.catalogue.findings
        orphans = [each for each in true if each.kind is FindingKind.ORPHAN]
        ids = {each: self._job_id(each) for each in true if each.kind is not FindingKind.ORPHAN}
        findings.act({(store, each.bucket, each.key): id_ for each, id_ in ids.items()}, "verify", now=clock.now())
        for each, id_ in ids.items():
            verify = VerifyRequest(bucket=each.bucket, key=each.key, stores=(store,), version=each.version)
            send_child(VERIFY, verify, id_=id_, parent=self._job.id, queue=Queue.SWEEP)
        first_read = self._settings.orphans == "adopt_first_read"
        adopt = PageRequest(verb="adopt", claim=ClaimSelection(store=store), first_read=first_read)
        most = self._job.settings.page.objects
        parts = [orphans[begin : begin + most] for begin in range(0, len(orphans), most)]
        for part in parts:
            id_ = self._job_id(*part)  # an attempt that finds the same orphans sends the same page
            findings.act({(store, each.bucket, each.key): id_ for each in part}, "adopt", now=clock.now())
            send_child(PAGE, adopt, id_=id_, parent=self._job.id, queue=Queue.SWEEP)
        return len(ids) + len(parts)

    def _job_id(self, *seen: Sighting) -> str:
        paths = " ".join(f"{each.bucket}/{each.key}" for each in seen)
        return child_id(f"{self._store.name} {paths} {self._run.run}")

    def _resolve(self) -> None:
        """Resolve the findings that the listing no longer shows.

        The store is asked for each orphan: the listing does not count an object that was written again just now, and an
        inventory report may leave out objects by a filter that its manifest does not tell.
        """
        findings, after = self._job.catalogue.findings, 0
        while settled := self._records.settled(self._run, self._bucket, self._prefix, after=after):
            after = settled[-1].id
            gone = [
                each.id
                for each in settled
                if each.kind is not FindingKind.ORPHAN
                or self._settings.orphans == "ignore"
                or not self._is_orphan(each)
            ]
            findings.resolve(gone, "the listing agrees with the catalogue again", now=clock.now())

    def _is_orphan(self, found: SettledFinding) -> bool:
        self._job.heartbeat()
        self._job.check()
        return self._is_true(Sighting(found.bucket, found.key, FindingKind.ORPHAN, 0, None)) is not False

    def _judge_listing(self) -> None:
        """Suspect a listing that lacks objects which the store has; one of the whole store without such is trusted."""
        if self._inventory is not None:  # an inventory report may leave out objects by a filter
            return
        if self._unlisted:
            some, more = ", ".join(self._unlisted[:_NAMED]), len(self._unlisted) - _NAMED
            detail = f"two listings lack objects that the store has: {some}" + (f" and {more} more" if more > 0 else "")
            logger.error("store %s: %s", self._store.name, detail)
            self._suspect({"detail": detail, "unlisted": len(self._unlisted)})
        elif self._bucket is None:
            self._suspect(None)

    def _suspect(self, evidence: Mapping[str, Any] | None) -> None:
        """Open the finding that the listing of the store cannot be relied on; without evidence resolve it."""
        findings = self._job.catalogue.findings
        findings.see_store(FindingKind.LISTING_SUSPECT, self._store.name, evidence, now=clock.now())


def _result(run: ReconcileRun, opened: dict[str, int], sent: int = 0, stopped: str | None = None) -> ReconciledStore:
    return ReconciledStore(
        store=run.store, listed=run.listed, recorded=run.recorded, seen=dict(run.found), findings=opened, sent=sent,
        stopped=stopped, known=dict(run.known),
    )  # fmt: skip


sweep_reconcile_task = artifact_task(SWEEP_RECONCILE, writes=False)(sweep_reconcile)
