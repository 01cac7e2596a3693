"""Write one object to Cloud Storage, over exactly the generation that it replaces; settle what unclear answers mean.

Nothing is ever written without a generation condition: a request that the library repeats, or that arrives late, would
overwrite what somebody else has written since.
"""

import base64
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import google_crc32c
from google.api_core.exceptions import NotFound as BlobNotFound
from google.cloud.storage.exceptions import DataCorruption

from worker.storage.cloud.error_mapping import Origin, missing_bucket
from worker.storage.driver import Body, Condition, Match, ObjectStat, PartData
from worker.storage.errors import AlreadyExists, PreconditionFailed, StorageError, TransientError, Unavailable
from worker.storage.gcs.client import COMMIT_TIMEOUT, TIMEOUT, Connection, Place, check_answer, retry
from worker.storage.gcs.errors import SDK_ERRORS, status_of, translate, translated
from worker.storage.gcs.objects import (
    CONTENT_TYPE,
    SHA256,
    WRITER,
    blob_of,
    described,
    generation_of,
    stored_metadata,
    to_stat,
)
from worker.storage.integrity.verifying_reader import drain
from worker.storage.transfer.chunked_body import ChunkedBody
from worker.storage.transfer.parts import next_part, pieces_of

TRIES = 16
"""How often an unconditional write looks again after somebody else was faster."""
SMALL = 1024 * 1024
"""Bytes: an object that may as well be sent twice as be looked for first. Most keys are written once."""
NOT_FOUND = 404
REFUSED = {409, 412}


@dataclass(frozen=True, slots=True)
class Write:
    """One write.

    Attributes:
        bucket: the logical bucket, for messages and the stat.
        key: the key in it.
        place: the real object.
        size: how many bytes there will be.
        metadata: what is stored beside them, with the writer's token.
        condition: see `Driver.put`.
        storage_class: the store's name of it, or None for the bucket's own.
    """

    bucket: str
    key: str
    place: Place
    size: int
    metadata: Mapping[str, str]
    condition: Condition
    storage_class: str | None

    @property
    def what(self) -> str:
        return f"{self.bucket}/{self.key}"


class Upload:
    """Carries out one write."""

    def __init__(self, connection: Connection, origin: Origin, write: Write) -> None:
        self._connection = connection
        self._origin = origin
        self._write = write

    def whole(self, body: Body) -> ObjectStat:
        """Send an object that fits into memory."""
        data = next_part(body, self._write.size)
        drain(body)  # the end is where a body says that it was wrong
        return self.commit(lambda pin: self._send(data, pin))

    def commit(self, send: Callable[[int], Any], *, again: bool = True) -> ObjectStat:
        """Make the object visible with `send`, which gets the generation to replace, 0 for none, and returns the blob.

        Args:
            send: does it.
            again: whether it can be done again, after somebody else was faster.
        """
        for attempt in range(TRIES if again else 1):
            pin = self._pin(guess=again and attempt == 0 and self._write.size <= SMALL)
            try:
                return to_stat(self._write.bucket, self._write.key, send(pin))
            except SDK_ERRORS as error:
                if ours := self._settled(error):
                    return ours
        raise self._under_way()

    def _pin(self, *, guess: bool) -> int:
        """Return the generation that the write may replace, 0 for none; a guess is that there is none."""
        condition = self._write.condition
        if condition is None and not guess:
            found = self.found()
            return int(found.generation) if found else 0
        return generation_of(condition) if isinstance(condition, Match) else 0

    def found(self) -> Any | None:
        """Return what lies at the place, or None."""
        with self._errors():
            return look(self._connection, self._write.place)

    def check_condition(self, found: Any | None) -> None:
        """Refuse before anything is done what the store would refuse at the end."""
        condition = self._write.condition
        if (condition == "create_only" and found) or (
            isinstance(condition, Match) and (found is None or found.generation != generation_of(condition))
        ):
            raise self._refusal(found)

    def is_ours(self, found: Any | None) -> bool:
        """Return whether it was this very write that made the object."""
        if found is None:
            return False
        stored, ours = stored_metadata(found), self._write.metadata
        return (stored.get(WRITER), stored.get(SHA256), found.size) == (ours[WRITER], ours[SHA256], self._write.size)

    def _send(self, data: PartData, pin: int) -> Any:
        description = described(self._write.metadata, self._write.storage_class)
        try:
            return send_bytes(self._connection, self._write.place, data, description, pin)
        except SDK_ERRORS as error:
            if status_of(error) == NOT_FOUND:
                raise missing_bucket(self._origin, self._write.place.bucket) from error
            raise

    def _settled(self, error: Exception) -> ObjectStat | None:
        """Find out what became of a write whose answer was an error; None if it may be tried again.

        The library sends a request again whose answer got lost. The second one then meets our own object and is
        refused: so whoever's object lies there decides, not the answer.
        """
        failure = translate(error, self._origin, self._write.what)
        refused = status_of(error) in REFUSED
        if not refused and not isinstance(failure, TransientError):
            raise failure from error
        with suppress(StorageError):
            found = self.found()
            if self.is_ours(found):
                return to_stat(self._write.bucket, self._write.key, found)
            if refused and self._write.condition is None:
                return None
            if refused:
                failure = self._refusal(found)
        raise failure from error

    def _refusal(self, found: Any | None) -> StorageError:
        condition, where = self._write.condition, f"{self._origin.store}: {self._write.what}"
        if condition == "create_only" and found:
            return AlreadyExists(f"{where} exists already")
        if isinstance(condition, Match) and (found is None or found.generation != generation_of(condition)):
            there = f"version {found.generation}" if found else "nothing"
            return PreconditionFailed(f"{where} was expected in version {condition.version}, {there} is there")
        return self._under_way()

    def _under_way(self) -> StorageError:
        return Unavailable(f"{self._origin.store}: {self._write.what}: another write was under way at the same time")

    def _errors(self) -> AbstractContextManager[None]:
        return translated(self._origin, self._write.what)


def send_bytes(connection: Connection, place: Place, data: PartData, description: Mapping[str, Any], pin: int) -> Any:
    """Send an object that is in memory or in a file, over generation `pin`, and return its blob.

    Its checksum goes with it, so that the store refuses what was damaged on the way. The library's own call is not
    used: it holds the bytes three times, and above 8 MiB takes two requests.

    Args:
        connection: what to send it with.
        place: what to make.
        data: its bytes.
        description: all that it has beside them; see `described`.
        pin: the generation that is replaced, 0 for none.
    """
    checksum, boundary = checksum_of(data), uuid.uuid4().hex
    resource = json.dumps({**description, "name": place.name, "crc32c": checksum})
    head = f"--{boundary}\r\ncontent-type: application/json; charset=UTF-8\r\n\r\n{resource}\r\n"
    head += f"--{boundary}\r\ncontent-type: {CONTENT_TYPE}\r\n\r\n"

    def ask() -> Any:
        reply = connection.session.request(
            "POST",
            connection.upload_url(place.bucket),
            params={"uploadType": "multipart", **connection.pinned(pin)},
            data=ChunkedBody(head.encode(), data, f"\r\n--{boundary}--".encode()),
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
            timeout=TIMEOUT,
        )
        check_answer(reply)
        return blob_of(reply.json())

    blob = retry()(ask)()
    if blob.crc32c != checksum:  # a store that does not look at the checksum
        delete(connection, place, blob.generation)
        raise DataCorruption(None, "the store has other bytes than were sent")
    return blob


def look(connection: Connection, place: Place) -> Any | None:
    """Return the object at a place with its properties, or None."""
    blob = connection.blob(place)
    try:
        blob.reload(retry=retry(), timeout=TIMEOUT)
    except BlobNotFound:
        return None
    return blob


def delete(connection: Connection, place: Place, generation: int) -> bool:
    """Delete exactly this generation of an object; return False if it is not there any more."""
    try:
        connection.blob(place).delete(if_generation_match=generation, retry=retry(), timeout=COMMIT_TIMEOUT)
    except SDK_ERRORS as error:
        if status_of(error) not in {NOT_FOUND, *REFUSED}:
            raise
        return False
    return True


def checksum_of(data: PartData) -> str:
    """Return the checksum of bytes as Cloud Storage writes it."""
    return crc32c_of(extended(0, data))


def extended(crc: int, data: PartData) -> int:
    """Return the CRC32C of what had `crc`, and then of these bytes."""
    for piece in pieces_of(data):
        crc = google_crc32c.extend(crc, bytes(piece))
    return crc


def crc32c_of(value: int) -> str:
    """Return a CRC32C as Cloud Storage writes it: its four bytes, the highest first, in base 64."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()
