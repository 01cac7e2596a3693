"""Write one object to Cloud Storage, over exactly the generation that it replaces; resolve unclear answers.

Nothing is ever written without a generation condition: a request that the library repeats, or that arrives late, would
overwrite what another writer has written since.
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
from requests.exceptions import InvalidJSONError

from worker.storage.cloud.conditional_write import Found, Write, broken_condition, concurrent_write, settle
from worker.storage.cloud.error_mapping import Origin, missing_bucket
from worker.storage.cloud.metadata import set_properties
from worker.storage.driver import Body, Match, ObjectStat, PartData
from worker.storage.errors import Conflict, StorageError, TransientError, UnexpectedAnswer
from worker.storage.gcs.client import COMMIT_TIMEOUT, TIMEOUT, Connection, ObjectName, check_answer, retry
from worker.storage.gcs.errors import SDK_ERRORS, status_of, translate, translated
from worker.storage.gcs.object_stat import (
    CACHE_CONTROL,
    CONTENT_TYPE,
    METADATA,
    blob_of,
    described,
    generation_of,
    to_found,
)
from worker.storage.integrity.verifying_reader import drain
from worker.storage.transfer.send_in_slices import SLICE, SlicedBody
from worker.storage.transfer.server_copy import Between
from worker.storage.transfer.split_into_parts import pieces_of, whole_body

TRIES = 16
"""How often an unconditional write starts again after another writer was faster."""
SMALL = 1024 * 1024
"""Up to this size in bytes an object is sent without a request for the existing one first. Most keys are written once.
"""
STANDING = 10
"""After so many answers without one more byte a copy is given up; Google promises none of each answer."""
NOT_FOUND = 404
REFUSED = {409, 412}


@dataclass(frozen=True, slots=True)
class GcsWrite(Write):
    """One write, and the real object that it makes. `storage_class` is None for the bucket's own."""

    name: ObjectName
    storage_class: str | None

    @property
    def description(self) -> dict[str, Any]:
        return described(self.metadata, self.storage_class, self.properties)


class Upload:
    """Carries out one write."""

    def __init__(self, connection: Connection, origin: Origin, write: GcsWrite) -> None:
        self._connection = connection
        self._origin = origin
        self._write = write

    def whole(self, body: Body) -> ObjectStat:
        """Send an object that fits into memory."""
        data = whole_body(body, self._write.size)
        drain(body)  # a wrong body raises at its end
        return self.commit(lambda pin: self._send(data, pin))

    def commit(self, send: Callable[[int], Any], *, again: bool = True) -> ObjectStat:
        """Make the object visible with `send`, which gets the generation to replace, 0 for none, and returns the blob.

        Args:
            send: does it.
            again: whether it can be done again after a conflict.
        """
        for attempt in range(TRIES if again else 1):
            pin = self._pin(guess=again and attempt == 0 and self._write.size <= SMALL)
            try:
                return self._made(send(pin))
            except SDK_ERRORS as error:
                if ours := self._settled(error):
                    return ours
        raise concurrent_write(self._write, self._origin)

    def _made(self, blob: Any) -> ObjectStat:
        """Return the stat of the object that an answer to this write describes.

        Raises:
            InvalidJSONError: it describes another object, or one of another size or digest.
        """
        with suppress(UnexpectedAnswer):
            found = self._to_found(blob)
            if blob.name == self._write.name.name and found.is_of(self._write):
                return found.stat
        msg = "the answer describes another object than the one that was written"
        raise InvalidJSONError(msg)

    def _pin(self, *, guess: bool) -> int:
        """Return the generation that the write may replace, 0 for none; without a request, 0 is assumed."""
        condition = self._write.condition
        if condition is None and not guess:
            found = self.found()
            return int(found.generation) if found else 0
        return generation_of(condition) if isinstance(condition, Match) else 0

    def found(self) -> Any | None:
        """Return the object under the key, or None."""
        with self._errors():
            return find_blob(self._connection, self._write.name)

    def check_condition(self, found: Any | None) -> None:
        """Raise at the start the error that the store would raise at the end."""
        if broken := broken_condition(self._write, self._origin, self._to_found(found) if found else None):
            raise broken

    def is_ours(self, found: Any | None) -> bool:
        """Return whether this write made the object."""
        return found is not None and self._to_found(found).is_of(self._write)

    def _send(self, data: PartData, pin: int) -> Any:
        try:
            return send_bytes(self._connection, self._write.name, data, self._write.description, pin)
        except SDK_ERRORS as error:
            if status_of(error) == NOT_FOUND:
                raise missing_bucket(self._origin, self._write.name.bucket) from None
            raise

    def _settled(self, error: Exception) -> ObjectStat | None:
        """Return the object if this write made it after all; None if the write may be tried again."""
        failure = translate(error, self._origin, self._write.what)
        refused = status_of(error) in REFUSED
        if not refused and not isinstance(failure, TransientError):
            raise failure from None
        outcome = settle(self._write, self._origin, failure, self._found, refused=refused)
        if not isinstance(outcome, StorageError):
            return outcome
        if self._write.condition is None and isinstance(outcome, Conflict):
            return None
        raise outcome from None

    def _found(self) -> Found | None:
        found = self.found()
        return self._to_found(found) if found else None

    def _to_found(self, blob: Any) -> Found:
        return to_found(self._origin.store, self._write.bucket, self._write.key, blob)

    def _errors(self) -> AbstractContextManager[None]:
        return translated(self._origin, self._write.what)


def send_bytes(
    connection: Connection,
    name: ObjectName,
    data: PartData,
    description: Mapping[str, Any],
    pin: int,
    *,
    crc32c: str | None = None,
) -> Any:
    """Send an object that is in memory or in a file, over generation `pin`, and return its blob.

    Its CRC32C goes with it, so that the store refuses damaged bytes; an MD5 beside it would take 1.4 s of a processor
    for a GiB. The library's own call is not used: it holds the bytes three times, and above 8 MiB takes two requests.

    Args:
        connection: what to send it with.
        name: the object to make.
        data: its bytes.
        description: its properties; see `described`.
        pin: the generation that is replaced, 0 for none.
        crc32c: the checksum to send, instead of that of `data`.
    """
    checksum, boundary = crc32c or checksum_of(data), uuid.uuid4().hex
    resource = json.dumps({**description, "crc32c": checksum})
    head = f"--{boundary}\r\ncontent-type: application/json; charset=UTF-8\r\n\r\n{resource}\r\n"
    head += f"--{boundary}\r\ncontent-type: {description.get('contentType', CONTENT_TYPE)}\r\n\r\n"
    sliced = SlicedBody(head.encode(), data, f"\r\n--{boundary}--".encode())
    body = b"".join(sliced) if len(sliced) <= SLICE else sliced  # the store is woken once for a small object

    def ask() -> Any:
        reply = connection.session.request(
            "POST",
            connection.upload_url(name.bucket),
            # No checksum is of the JSON: with the name in there, a byte damaged on the way would make another object.
            params={"uploadType": "multipart", "name": name.name, **connection.pinned(pin)},
            data=body,
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
            timeout=TIMEOUT,
        )
        check_answer(reply)
        return blob_of(reply)

    blob = retry()(ask)()
    if blob.crc32c != checksum:  # a store that does not check the checksum returns at least its own
        take_back(connection, name, description.get("metadata", {}).get(METADATA.writer))
        raise DataCorruption(None, "the store has other bytes than were sent")
    return blob


def rewrite(connection: Connection, original: Any, write: GcsWrite, pin: int, between: Between = lambda: None) -> Any:
    """Copy exactly the generation that `original` names, over generation `pin`, and return the blob of the copy.

    Nothing is visible before the last of the requests, of which a copy to another location or class takes several.
    """
    blob = connection.blob(write.name)
    blob.metadata = dict(write.metadata)
    blob.content_type = CONTENT_TYPE
    blob.cache_control = CACHE_CONTROL
    for name, value in set_properties(write.properties).items():
        setattr(blob, name, value)
    if write.storage_class:
        blob.storage_class = write.storage_class
    pins = {"if_generation_match": pin, "if_source_generation_match": original.generation}
    token, most, standing = None, 0, 0
    while standing < STANDING:  # each request continues where the last one ended
        between()
        token, copied, _ = blob.rewrite(original, token=token, retry=retry(), timeout=COMMIT_TIMEOUT, **pins)
        if token is None:
            return blob
        standing, most = (0, copied) if copied > most else (standing + 1, most)
    msg = f"the copy has not advanced in {STANDING} answers"
    raise InvalidJSONError(msg)


def find_blob(connection: Connection, name: ObjectName) -> Any | None:
    """Return an object with its properties, or None."""
    blob = connection.blob(name)
    try:
        blob.reload(retry=retry(), timeout=TIMEOUT)
    except BlobNotFound:
        return None
    if blob.generation is None or blob._properties.get("name", name.name) != name.name:  # noqa: SLF001
        msg = "the answer describes no object, or another one"
        raise InvalidJSONError(msg)
    return blob


def take_back(connection: Connection, name: ObjectName, writer: str | None) -> None:
    """Delete the object that the write with this token has made, and no other one, whatever the answer to it said."""
    found = find_blob(connection, name)
    if found is not None and METADATA.stored(found.metadata).get(METADATA.writer) == writer:
        delete(connection, name, found.generation)


def delete(connection: Connection, name: ObjectName, generation: int) -> bool:
    """Delete exactly this generation of an object; return False if it is not there any more."""
    try:
        connection.blob(name).delete(if_generation_match=generation, retry=retry(), timeout=COMMIT_TIMEOUT)
    except SDK_ERRORS as error:
        if status_of(error) not in {NOT_FOUND, *REFUSED}:
            raise
        return False
    return True


def checksum_of(data: PartData) -> str:
    """Return the CRC32C of bytes as Cloud Storage writes it."""
    return crc32c_of(extended(0, data))


def extended(crc: int, data: PartData) -> int:
    """Return the CRC32C of bytes with the CRC32C `crc`, followed by these bytes."""
    for piece in pieces_of(data):
        crc = google_crc32c.extend(crc, bytes(piece))
    return crc


def crc32c_of(value: int) -> str:
    """Return a CRC32C as Cloud Storage writes it: its four bytes, the highest first, in base 64."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()
