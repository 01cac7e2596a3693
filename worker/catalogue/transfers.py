"""Open multipart uploads: what another process needs to resume them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from worker.catalogue.database import Queries
from worker.catalogue.records import OPEN_STATES, Artifact
from worker.catalogue.tables import artifacts, jobs, transfer_parts, transfers, upload_intents
from worker.storage.driver import Part
from worker.storage.transfer.multipart import OpenUpload, SentPart

_path = artifacts.c.bucket + "/" + artifacts.c.key
_LIVE = sa.exists().where(jobs.c.holds == _path, jobs.c.state.in_(OPEN_STATES))
_OPEN_TRANSFERS = sa.select(
    transfers.c.id, transfers.c.token, _path.label("path"), transfers.c.begun_at, transfers.c.store, _LIVE.label("live")
).join(artifacts, artifacts.c.id == transfers.c.artifact_id)


@dataclass(frozen=True, slots=True)
class OpenTransfer:
    """An open multipart upload. `live`: a job that has not ended will resume it."""

    id: int
    token: str
    path: str
    begun_at: datetime
    store: str
    live: bool


@dataclass(frozen=True, slots=True)
class UploadIntent:
    """A multipart upload that a process was about to begin, and whose token it has not recorded."""

    id: int
    bucket: str
    key: str
    intended_at: datetime


class Transfers(Queries):
    """The open multipart upload of each copy; there is at most one."""

    def find(self, artifact: Artifact, store: str) -> OpenUpload | None:
        """Return the open upload of this copy, or None."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(transfers).where(*_of(artifact, store))).one_or_none()
            if row is None:
                return None
            parts = connection.execute(sa.select(transfer_parts).where(transfer_parts.c.transfer_id == row.id)).all()
        sent = {part.number: SentPart(Part(part.number, part.size, part.tag), part.sha256) for part in parts}
        return OpenUpload(row.token, row.part_size, sent)

    def intend(self, artifact: Artifact, store: str, *, now: datetime) -> None:
        """Record that an upload is about to begin; `begin` removes the record again."""
        values = {"store": store, "bucket": artifact.bucket, "key": artifact.key, "intended_at": now}
        with self._database.write() as connection:
            connection.execute(sa.insert(upload_intents), values)

    def intents(self, store: str) -> list[UploadIntent]:
        """Return the uploads that were about to begin in a store and were never recorded, the oldest first."""
        columns = [upload_intents.c[name] for name in ("id", "bucket", "key", "intended_at")]
        asked = sa.select(*columns).where(upload_intents.c.store == store).order_by(upload_intents.c.id)
        with self._database.read() as connection:
            return [UploadIntent(*row) for row in connection.execute(asked)]

    def forget_intents(self, intents: Sequence[UploadIntent]) -> None:
        """Remove intents whose uploads cannot be open any more, or cannot be told from another program's."""
        with self._database.write() as connection:
            for intent in intents:
                connection.execute(sa.delete(upload_intents).where(upload_intents.c.id == intent.id))

    def begin(self, artifact: Artifact, store: str, *, token: str, part_size: int, now: datetime) -> None:
        """Record an open upload in place of one that was recorded before, and of the last intent."""
        values = {
            "artifact_id": artifact.id,
            "store": store,
            "token": token,
            "part_size": part_size,
            "begun_at": now,
        }
        with self._database.write() as connection:
            connection.execute(sa.delete(transfers).where(*_of(artifact, store)))
            connection.execute(sa.insert(transfers), values)
            place = (upload_intents.c.store == store, *_at(artifact))
            last = sa.select(sa.func.max(upload_intents.c.id)).where(*place).scalar_subquery()
            connection.execute(sa.delete(upload_intents).where(upload_intents.c.id == last))

    def add(self, artifact: Artifact, store: str, sent: SentPart) -> None:
        """Record a part that the store has confirmed, in place of one with the same number."""
        with self._database.write() as connection:
            id_ = connection.execute(sa.select(transfers.c.id).where(*_of(artifact, store))).scalar_one()
            connection.execute(
                sa.delete(transfer_parts).where(
                    transfer_parts.c.transfer_id == id_, transfer_parts.c.number == sent.part.number
                )
            )
            values = {
                "transfer_id": id_,
                "number": sent.part.number,
                "size": sent.part.size,
                "tag": sent.part.tag,
                "sha256": sent.sha256,
            }
            connection.execute(sa.insert(transfer_parts), values)

    def end(self, artifact: Artifact, store: str) -> None:
        """Remove the upload of this copy; no upload is no error."""
        with self._database.write() as connection:
            connection.execute(sa.delete(transfers).where(*_of(artifact, store)))

    def open_in(self, store: str) -> list[OpenTransfer]:
        """Return all open uploads in a store: cleanup must not abort those that are live."""
        with self._database.read() as connection:
            found = connection.execute(_OPEN_TRANSFERS.where(transfers.c.store == store))
            return [OpenTransfer(*row) for row in found]

    def abandoned(self, path: str) -> list[OpenTransfer]:
        """Return the open uploads of an artifact, `bucket/key`, that no job will resume."""
        with self._database.read() as connection:
            found = connection.execute(_OPEN_TRANSFERS.where(_path == path))
            return [transfer for row in found if not (transfer := OpenTransfer(*row)).live]

    def forget(self, transfer: OpenTransfer) -> None:
        """Remove an upload that was aborted because no job resumes it."""
        with self._database.write() as connection:
            connection.execute(sa.delete(transfers).where(transfers.c.id == transfer.id))


def _at(artifact: Artifact) -> tuple[sa.ColumnElement[bool], ...]:
    return upload_intents.c.bucket == artifact.bucket, upload_intents.c.key == artifact.key


def _of(artifact: Artifact, store: str) -> tuple[sa.ColumnElement[bool], ...]:
    return transfers.c.artifact_id == artifact.id, transfers.c.store == store
