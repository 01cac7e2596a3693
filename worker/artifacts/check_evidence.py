"""Check evidence: compare a store's metadata of a copy with the record of its write, without reading the bytes.

This does not prove the bytes: a store may keep the metadata of the write while the medium rots.
"""

from collections.abc import Mapping

from worker.artifacts.per_store import SingleFailures
from worker.catalogue import EvidenceCheck, RecordedEvidence
from worker.limits.limited_store import LimitedStore
from worker.storage import ListedObject, ObjectStat
from worker.storage.errors import NotFound, StorageError, TransientError

_CHECKSUMS = ("crc32c", "md5", "content_md5")
"""The checksums that clouds compute over the bytes, by the names in `ObjectStat.storage_tags`.

ETags are not among them: that of S3 and Azure is the version tag, that of Cloud Storage changes with the metadata.
"""


def compare_listed(
    known: RecordedEvidence, listed: ListedObject, checksums: Mapping[str, str] | None = None
) -> EvidenceCheck:
    """Compare a copy with its row of a listing: the size, and the version tag, which changes with every write.

    `checksums`: those that the row of an inventory report has too.
    """
    found: dict[str, tuple[object, object]] = {"size": (known.size, listed.size)} if listed.size is not None else {}
    if known.tag and listed.version:
        found["version"] = (known.tag, listed.version)
    for name, checksum in (checksums or {}).items():
        recorded = known.sha256 if name == "sha256" else known.evidence.get(name)
        if recorded:
            found[name] = (recorded, checksum)
    return _check(known, "listing" if checksums is None else "inventory", found)


def compare_stat(known: RecordedEvidence, stat: ObjectStat) -> EvidenceCheck:
    """Compare a copy with what the store says about the object: size, version tag, digest and checksums."""
    found: dict[str, tuple[object, object]] = {"size": (known.size, stat.size)}
    if known.tag:
        found["version"] = (known.tag, stat.version)
    if stat.sha256:
        found["sha256"] = (known.sha256, stat.sha256)
    for name in _CHECKSUMS:
        if known.evidence.get(name) and stat.storage_tags.get(name):
            found[name] = (known.evidence[name], stat.storage_tags[name])
    return _check(known, "stat", found)


def check_copy(
    store: LimitedStore, bucket: str, known: RecordedEvidence, failures: SingleFailures | None = None
) -> EvidenceCheck:
    """Ask the store for one object and compare it.

    Raises:
        TransientError, Snooze: the store does not answer, or takes no job now. With `failures`: it has not answered
            about several objects in a row.
    """
    try:
        found = store.stat_object(bucket, known.key)
    except NotFound:
        if failures:
            failures.ended()
        return EvidenceCheck(known.copy_id, "stat", "absent", detail="the store has no object of this name")
    except StorageError as error:
        if failures:
            failures.add(error)
        elif isinstance(error, TransientError):
            raise
        return EvidenceCheck(known.copy_id, "stat", "unknown", detail=error.message)
    if failures:
        failures.ended()
    return compare_stat(known, found)


def _check(known: RecordedEvidence, source: str, found: dict[str, tuple[object, object]]) -> EvidenceCheck:
    wrong = [f"{name} is {now}, not the recorded {then}" for name, (then, now) in found.items() if then != now]
    outcome = "differs" if wrong else "agrees" if found else "unknown"
    return EvidenceCheck(known.copy_id, source, outcome, ", ".join(found), "; ".join(wrong) or None)
