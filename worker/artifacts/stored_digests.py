"""Judge the digest that a store keeps beside the bytes of a verified copy: in a sidecar, or in an object's metadata."""

from collections.abc import Mapping
from typing import Any

from worker.catalogue import Artifact, PageCopy
from worker.catalogue.rebuilding import BELIEVED, KEPT
from worker.limits.limited_store import LimitedStores
from worker.limits.snooze import Snooze
from worker.storage import Verification
from worker.storage.errors import StorageError

RECORDED = "sha256 in the catalogue"


def stored_sha256_of(
    stores: LimitedStores, of: Artifact | PageCopy, store: str, evidence: Mapping[str, Any], seen: Verification
) -> str | None:
    """Return the digest that the store keeps beside the bytes that were read: empty if it was lost, None if not known.

    A copy that another program wrote without a digest cannot lose it. A digest that is not the recorded one is asked
    for again: a small object may be replaced between the read of its bytes and that of its sidecar.
    """
    found = seen.stored_sha256
    if found in {None, of.digest.sha256}:
        return found
    if not found and not _had_digest(evidence):
        return None
    try:
        stat = stores[store].stat_object(of.bucket, of.key)
    except (StorageError, Snooze):
        return None  # the next read of the copy finds out
    return (stat.sha256 or "") if stat.version == seen.version else None


def _had_digest(evidence: Mapping[str, Any]) -> bool:
    """Return whether the store kept a digest beside the bytes of a copy when the copy was recorded."""
    return evidence.get("adopted", KEPT) == KEPT and evidence.get("rebuilt", KEPT) in {KEPT, BELIEVED}
