"""Open and resolve the findings on overdue copies, late backups and stores that are not configured."""

from datetime import datetime

from worker.catalogue import Catalogue, FindingKind, FindingRecord
from worker.settings import Settings

_OF_STORES = 1000
_LATE_BACKUPS = 3
"""Periods of `sweep.backup` without a good backup."""
_OF_ARTIFACTS = 10_000


def see_stores(settings: Settings, catalogue: Catalogue, now: datetime) -> None:
    """Open a finding on each store with overdue copies or backups, and on each that is not configured.

    The others are resolved, but a late backup only by the next good one.
    """
    findings = catalogue.findings
    for store in settings.sweep.backup.stores:
        written = catalogue.backup_times.written(store)
        if written is not None and now - written > settings.sweep.backup.every * _LATE_BACKUPS:
            detail = f"the last good backup of the catalogue is of {written:%Y-%m-%d %H:%M} UTC"
            findings.see_store(FindingKind.BACKUP, store, {"detail": detail}, now=now)
    unused = [
        each.id
        for each in findings.page(kind=FindingKind.BACKUP, limit=_OF_STORES)
        if each.store not in settings.sweep.backup.stores
    ]
    if unused:
        findings.resolve(unused, "the store gets no backups any more", now=now)
    for store in settings.stores:
        period = settings.sweep.verify.period_of(store)
        late = catalogue.sweep_claims.overdue(store, period=period, now=now)
        evidence = {"copies": late, "period_seconds": period.total_seconds()}
        findings.see_store(FindingKind.OVERDUE, store, evidence if late else None, now=now)
    beyond = catalogue.store_records.unconfigured(settings.stores)
    for store, states in beyond.items():
        findings.see_store(FindingKind.STORE_NOT_CONFIGURED, store, {"copies": sum(states.values())}, now=now)
    for kind, wrong in ((FindingKind.OVERDUE, settings.stores), (FindingKind.STORE_NOT_CONFIGURED, beyond)):
        over = [each.id for each in findings.page(kind=kind, limit=_OF_STORES) if each.store not in wrong]
        if over:
            findings.resolve(over, "no longer so", now=now)
    unwanted = [
        each.id
        for each in findings.page(kind=FindingKind.UNDER_REPLICATED, limit=_OF_ARTIFACTS)
        if not _wanted(settings, catalogue, each)
    ]
    if unwanted:
        findings.resolve(unwanted, "the copy does not belong there any more", now=now)


def _wanted(settings: Settings, catalogue: Catalogue, found: FindingRecord) -> bool:
    store, bucket, key = found.store or "", found.bucket or "", found.key or ""
    artifact = catalogue.artifacts.current(bucket, key)
    if artifact is None:
        return False
    placed_as = catalogue.companions.placed_as(bucket, key)
    if settings.wants(store, bucket, placed_as, stores_named=artifact.stores_named):
        return True
    copy = catalogue.artifacts.copies(artifact).get(store)
    return copy is not None and copy.was_left
