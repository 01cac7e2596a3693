"""Read an object that another program wrote, to record it as a copy of its artifact."""

import logging
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from worker.artifacts.sanitize_found_metadata import encoded_tags, valid_metadata
from worker.artifacts.stored_digests import RECORDED
from worker.catalogue import Adoption, Artifact, Copy
from worker.catalogue.rebuilding import FIRST_READ, KEPT
from worker.jobs.running_job import RunningJob
from worker.limits.limited_store import LimitedStore
from worker.storage import ObjectStat
from worker.storage.cloud.metadata import set_properties
from worker.storage.errors import Conflict, DigestMismatch, IntegrityError, PermanentError
from worker.storage.integrity.manifest import compute_digests
from zot_artifact_client.contract import AdoptRequest

logger = logging.getLogger(__name__)

GIVEN = "sha256 of the request"


class Unverifiable(PermanentError):
    """No digest is known to compare the object's bytes with."""


class OtherContent(IntegrityError):
    """The artifact is known, with other bytes."""


@dataclass(frozen=True, slots=True)
class ReadObject:
    """An object whose bytes may be recorded. `not_carried`: what the store keeps beside them and does not return."""

    stat: ObjectStat
    adoption: Adoption
    not_carried: AbstractSet[str]

    def not_recorded(self, artifact: Artifact) -> tuple[str, ...]:
        """Return and log, sorted, what the store keeps beside the bytes and the artifact does not have."""
        wanted = self.adoption.properties
        beside = {*self.not_carried} - ({"tags"} if "tags" in wanted else set())
        beside |= {name for name, value in wanted.items() if artifact.properties.get(name) != value}
        if any(artifact.metadata.get(name) != value for name, value in self.stat.metadata.items()):
            beside.add("metadata")
        told = tuple(sorted(beside))
        if told:
            logger.warning(
                "%s: %s: the store keeps %s, which is not recorded and not replicated",
                self.adoption.store, artifact.path, ", ".join(told),
            )  # fmt: skip
        return told


def adopted_before(request: AdoptRequest, stat: ObjectStat, known: Artifact | None, copy: Copy | None) -> str | None:
    """Return the evidence of a copy that is recorded and unchanged, which is not read again; None for any other.

    `known` is the current version of the artifact, and `copy` its copy in the store of the request.
    """
    as_asked = known is not None and request.sha256 in {None, known.digest.sha256}
    if not (known and as_asked and copy and copy.state.good):
        return None
    if (copy.tag, known.digest.size) != (stat.version, stat.size):
        return None
    return str(copy.evidence.get("adopted", RECORDED))


def read_to_adopt(
    request: AdoptRequest, store: LimitedStore, stat: ObjectStat, known: Artifact | None, job: RunningJob
) -> ReadObject:
    """Read an object in full, compare it with every known digest, and return it as one that may be recorded.

    `stat` is that of the object, and `known` the current version of the artifact.

    Raises:
        DigestMismatch: the bytes have another digest than the store keeps or the request names.
        OtherContent: the artifact is known with other bytes.
        Unverifiable: there is no digest, and the request does not say `first_read`; nothing was read.
        Conflict: the object was written just now.
        StorageError, Snooze: it cannot be read.
    """
    evidence = _evidence(request, stat, known)
    what = f"{store.name}: {stat.bucket}/{stat.key}"
    try:
        with store.read_object(stat.bucket, stat.key, on_bytes=job.advance) as reader:
            if reader.stat.version != stat.version:
                raise Conflict(f"{what} was written by another program just now")
            not_carried = {*stat.not_carried, *reader.stat.not_carried}
            digest, manifest = compute_digests(reader, size=stat.size, what=what)  # compared with what the store keeps
    except DigestMismatch as error:
        raise DigestMismatch(
            f"{error.message}, which the store keeps beside it: the bytes are damaged, or another program has written "
            "them; if they are right, `upload` a copy of them under this key, or remove the digest (the file "
            "`KEY.sha256`, or the metadata `sha256`) with the tools of the store, and adopt it then"
        ) from error
    if request.sha256 not in {None, digest.sha256}:
        raise DigestMismatch(f"{what} has SHA-256 {digest.sha256}, the request has {request.sha256}")
    if known and digest != known.digest:
        raise OtherContent(
            f"{store.name}: {known.path} has SHA-256 {digest.sha256}, version {known.version} in the catalogue has "
            f"{known.digest.sha256}: one of the two belongs under another key"
        )
    tags = encoded_tags(store, stat) if "tags" in not_carried else None
    adoption = Adoption(
        bucket=stat.bucket, key=stat.key, digest=digest, manifest=manifest, known=known,
        metadata=known.metadata if known else valid_metadata(stat.metadata),
        properties=set_properties(stat.properties) | ({"tags": tags} if tags else {}),
        store=store.name, tag=stat.version, evidence={**stat.storage_tags, "adopted": evidence},
        job=job.id, verified=evidence != FIRST_READ,
    )  # fmt: skip
    return ReadObject(stat, adoption, not_carried)


def _evidence(request: AdoptRequest, stat: ObjectStat, known: Artifact | None) -> str:
    """Return the evidence to record: the digest that the bytes will be compared with."""
    if stat.sha256:
        return KEPT
    if request.sha256:
        return GIVEN
    if known:
        return RECORDED
    if request.first_read:
        return FIRST_READ
    raise Unverifiable(
        f"{request.store}: {request.bucket}/{request.key} is unverifiable, the store keeps no SHA-256 of it; "
        "if a list of `sha256sum` in the store names it, adopt it with `--sums`, which compares it with that (in a "
        "request: `sha256`); `--first-read` records its bytes as they are (`first_read`)"
    )
