"""Sweep canary: damage an object of our own in each store, and measure how soon it is found and repaired."""

import logging
from contextlib import suppress

from worker import clock
from worker.artifacts import canary_objects
from worker.artifacts.quarantined_bytes import purge, quarantined
from worker.catalogue import CanaryRound, FindingKind
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.storage import Store
from worker.storage.durations_and_sizes import duration_text
from worker.storage.errors import AccessDenied, NotFound, StorageError
from worker.storage.keys import CANARY_BUCKET
from zot_artifact_client.contract import SWEEP_CANARY, SweepCanaryRequest, SweepCanaryResult

logger = logging.getLogger(__name__)


def sweep_canary(request: SweepCanaryRequest, job: RunningJob) -> SweepCanaryResult:
    """Close the rounds whose canary is repaired, open a finding for each that was missed, and begin the next ones.

    Nothing but the verify sweep finds a canary, and nothing but the repair sweep repairs it, as any other copy. Stores
    that are paused, read-only or without a reserved bucket have none.

    Raises:
        UnknownStore: naming the stores there are.
    """
    sweep, told = job.settings.sweep.canary, {}
    for name in job.swept_stores(request.store):
        job.step(f"canary of {name}")
        job.check()
        if name in sweep.off:
            continue
        try:
            told[name] = _Canary(job, name).turn()
        except AccessDenied as error:
            told[name] = f"read-only: {error.message}"
        except StorageError as error:
            logger.warning("%s: its canary waits: %s", name, error)
            told[name] = f"waits: {error.message}"
    before = clock.earliest() - job.settings.findings.retention
    job.catalogue.canaries.prune(before=before)
    return SweepCanaryResult(canaries=told)


class _Canary:
    """The canaries of one store in this run."""

    def __init__(self, job: RunningJob, name: str) -> None:
        self._job = job
        self._name = name
        self._store = job.unlimited_stores[name]
        self._canaries = job.catalogue.canaries

    def turn(self) -> str:
        """Do the next step of the round, and return its state."""
        if not self._store.capabilities.reserved_buckets:
            return "none: the store has no reserved bucket"
        last = self._canaries.last(self._name)
        if last is not None and last.closed_at is None:
            state = self._close(last)
            if state != "repaired":
                return state
        return self._begin(last)

    def _begin(self, last: CanaryRound | None) -> str:
        number = 0 if last is None else (int(last.key.rpartition("/")[2]) + 1) % self._job.settings.sweep.canary.objects
        key = canary_objects.key_of(self._name, number)
        partner = self._partner()
        artifact = canary_objects.ensure(self._job.catalogue, [self._store, *([partner] if partner else [])], key)
        if not all(copy.state.good for copy in self._job.catalogue.artifacts.copies(artifact).values()):
            return "waits: it is bad and was not damaged on purpose"
        self._damage(self._canaries.begin(self._name, key, now=clock.now()))
        return "damaged"

    def _damage(self, round_: CanaryRound) -> None:
        artifact, now = self._job.catalogue.artifact(CANARY_BUCKET, round_.key), clock.now()
        canary_objects.damage(self._store, self._job.settings.stores[self._name], round_.key)
        self._canaries.damaged(round_, artifact, now=now)

    def _close(self, last: CanaryRound) -> str:
        """Return how far a round is, and close it if its canary is right again."""
        if last.damaged_at is None:  # the worker died before it was recorded
            self._damage(last)
            return "damaged"
        seen = self._canaries.observe(last)
        catalogue, now, within = self._job.catalogue, clock.now(), self._job.settings.sweep.canary.within
        late = None
        if seen.detected_at is None:
            late = "its damage was not found" if now - last.damaged_at > within else None
        elif seen.repaired_at is None:
            self._restore_if_alone(seen)
            late = "its damage was found and not repaired" if now - seen.detected_at > within else None
        evidence = {"detail": f"canary {seen.key}: {late} within {duration_text(within)}"} if late else None
        catalogue.findings.see_store(FindingKind.CANARY_MISSED, self._name, evidence, now=now)
        if late or seen.repaired_at is None:
            return "missed" if late else "found" if seen.detected_at else "damaged"
        self._canaries.close(seen, now=now)
        self._empty_quarantine()
        return "repaired"

    def _restore_if_alone(self, seen: CanaryRound) -> None:
        """Write the right bytes where no repair can do it: the store is the only one, or its repairs are off."""
        repair, catalogue = self._job.settings.sweep.repair, self._job.catalogue
        off = not repair.enabled or self._name in repair.off
        if off or self._name in catalogue.repairs.untrusted() or self._partner() is None:
            canary_objects.write(catalogue, self._store, catalogue.artifact(CANARY_BUCKET, seen.key))

    def _partner(self) -> Store | None:
        """Return another store, from which a repair can copy."""
        job, off = self._job, self._job.settings.sweep.canary.off
        for name in job.swept_stores(None):
            if name != self._name and name not in off:
                with suppress(StorageError):
                    if (store := job.unlimited_stores[name]).capabilities.reserved_buckets:
                        return store
        return None

    def _empty_quarantine(self) -> None:
        with suppress(NotFound):
            for each in quarantined(self._store, self._job.catalogue, f"{CANARY_BUCKET}/"):
                purge(self._store, each)


sweep_canary_task = artifact_task(SWEEP_CANARY, writes=False)(sweep_canary)
