"""The bad bytes that repairs have kept in the quarantine of each store."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from worker.catalogue import BAD, Catalogue
from worker.storage.driver import Match
from worker.storage.errors import PreconditionFailed
from worker.storage.keys import QUARANTINE_BUCKET

if TYPE_CHECKING:
    from worker.limits.limited_store import AnyStore  # it imports the clients of the broker

_VERDICTS = 100


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Bad bytes that a job has kept before it replaced them.

    `id` names them within their store: `BUCKET/JOB/KEY`, with a hash in place of a key that was too long. `at` is when
    the job ran, None if the ledger does not have it any more: the time of the object may be that of the bad bytes.
    `version` is the version tag of the object.
    """

    store: str
    id: str
    bucket: str
    job: str
    key: str
    size: int | None
    at: datetime | None
    version: str


def quarantined(store: "AnyStore", catalogue: Catalogue, prefix: str = "") -> Iterator[Quarantined]:
    """Yield the objects in the quarantine of a store whose ids begin with `prefix`."""
    times: dict[str, datetime | None] = {}
    for each in store.list_objects(QUARANTINE_BUCKET, prefix):
        bucket, _, rest = each.key.partition("/")
        job, _, key = rest.partition("/")
        if job not in times:
            record = catalogue.ledger.get(job)
            times[job] = (record.finished_at or record.started_at) if record else None
        yield Quarantined(store.name, each.key, bucket, job, key, each.size, times[job], each.version)


def digest_of(found: Quarantined, catalogue: Catalogue) -> str | None:
    """Return the SHA-256 that the last bad verdict before the job found, None if it found none."""
    for row in catalogue.verifications.of(found.bucket, found.key, limit=_VERDICTS):
        before = found.at is None or row["at"] <= found.at
        if row["store"] == found.store and row["verdict"] in BAD and before:
            return str(row["found_sha256"]) if row["found_sha256"] else None
    return None


def purge(store: "AnyStore", found: Quarantined) -> bool:
    """Delete an object of the quarantine, unless it was replaced since it was found; return whether it was there."""
    try:
        return store.delete_object(QUARANTINE_BUCKET, found.id, condition=Match(found.version))
    except PreconditionFailed:
        return False
