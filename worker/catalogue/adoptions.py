"""Adoptions: what another program wrote becomes a copy of its artifact, in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from worker.catalogue.artifacts import FinishedCopy, current_version, finish_copies
from worker.catalogue.database import CatalogueError, Queries
from worker.catalogue.holds import OnHold
from worker.catalogue.record_versions import ensure_copy, record_version
from worker.catalogue.records import Artifact, VerdictRow
from worker.catalogue.verifications import append_verdicts, prepare_verdicts
from worker.storage import Digest, Verdict
from worker.storage.integrity.manifest import Manifest

ADOPTED_AFTER_DELETE = "adopted_after_delete"
"""The outcome in a page of an object whose artifact was deleted: it has a new version."""


class OtherVersion(CatalogueError):
    """The artifact has got another version since the object was compared with it."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """An object that was read in full. `known`: the version that has its bytes, None for a new artifact.

    `metadata` and `properties` are those of a new version. `verified`: the bytes had a digest to match.
    """

    bucket: str
    key: str
    digest: Digest
    manifest: Manifest
    known: Artifact | None
    metadata: Mapping[str, str]
    properties: Mapping[str, str]
    store: str
    tag: str
    evidence: Mapping[str, Any]
    job: str
    verified: bool

    def is_after_delete(self, recorded: Artifact) -> bool:
        """Return whether the recorded version follows one that was deleted."""
        return self.known is None and recorded.version > 1


class Adoptions(Queries):
    """The record of objects that another program wrote."""

    def record(self, adoption: Adoption, now: datetime) -> Artifact:
        """Record an object as a copy, and if it was verified the verdict; return its version.

        Raises:
            OtherVersion, OnHold: nothing was recorded.
        """
        with self._database.write() as connection:
            [recorded] = record_adoptions(connection, [adoption], now)
        if isinstance(recorded, Artifact):
            return recorded
        raise recorded


def record_adoptions(
    connection: Connection, adoptions: Sequence[Adoption], now: datetime
) -> list[Artifact | OtherVersion | OnHold]:
    """Record objects as copies, with the verdicts on those that were verified.

    Returns:
        The version of each, or why nothing was recorded of it.
    """
    recorded: list[Artifact | OtherVersion | OnHold] = []
    finished: list[FinishedCopy] = []
    verdicts: list[VerdictRow] = []
    for each in adoptions:
        try:
            artifact = each.known or _new_version(connection, each, now)
        except (OtherVersion, OnHold) as error:
            recorded.append(error)
            continue
        copy = ensure_copy(connection, artifact, each.store)
        recorded.append(artifact)
        finished.append(FinishedCopy(artifact, each.store, each.tag, each.evidence))
        if each.verified:
            verdict = VerdictRow(
                copy.id, each.job, each.store, each.bucket, each.key, artifact.version, str(Verdict.VERIFIED),
                artifact.digest.sha256, each.digest.sha256, each.digest.size, tag=each.tag,
            )  # fmt: skip
            verdicts.append(verdict)
    finish_copies(connection, finished, now)
    append_verdicts(connection, prepare_verdicts(verdicts, now))
    return recorded


def _new_version(connection: Connection, each: Adoption, now: datetime) -> Artifact:
    current = current_version(connection, each.bucket, each.key)
    if current is not None and current.digest != each.digest:
        raise OtherVersion(f"version {current.version} of {current.path} was recorded while the object was read")
    return record_version(
        connection, bucket=each.bucket, key=each.key, digest=each.digest, metadata=each.metadata, now=now,
        manifest=each.manifest, properties=each.properties,
    ).artifact  # fmt: skip
