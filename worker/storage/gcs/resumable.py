"""Send one large object in one resumable upload: chunk after chunk, resumed after a broken connection.

The library cannot do it. It commits before the body was read to its end, and leaves the session of a failed upload
open. It sends the checksum only together with a deletion that names no generation.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import requests
from google.api_core.exceptions import Aborted

from worker.storage.cloud.error_mapping import Origin, missing_bucket
from worker.storage.driver import Body
from worker.storage.errors import StorageError, Unavailable
from worker.storage.gcs.client import TIMEOUT, Connection, check_answer, retry
from worker.storage.gcs.errors import SDK_ERRORS, without_address
from worker.storage.gcs.object_stat import blob_of
from worker.storage.gcs.upload import NOT_FOUND, GcsWrite, crc32c_of, extended, take_back
from worker.storage.integrity.verifying_reader import drain
from worker.storage.transfer.split_into_parts import next_part

CHUNK_UNIT = 256 * 1024
"""Every chunk but the last is a multiple of this."""
_INCOMPLETE = 308
_ENDED = {404, 410, 499}


class ResumableUpload:
    """One upload session. Its address is a secret, with which anyone can write, and never leaves this object."""

    def __init__(self, connection: Connection, origin: Origin, write: GcsWrite, chunk: int) -> None:
        self._connection = connection
        self._origin = origin
        self._write = write
        self._chunk = chunk
        self._session = ""

    def send(self, body: Body, pin: int) -> Any:
        """Send the body over generation `pin` and return the blob. It becomes visible with the last chunk, or not."""
        self._session = retry()(self._begin)(pin)
        try:
            blob, crc = self._send_chunks(body)
        except BaseException:  # also at a shutdown: an open session lasts for a week
            self._cancel()
            raise
        self._check(blob, crc)
        return blob

    def _begin(self, pin: int) -> str:
        name = self._write.name
        reply = self._connection.session.request(
            "POST",
            self._connection.upload_url(name.bucket),
            params={"uploadType": "resumable", "name": name.name, **self._connection.pinned(pin)},
            json=self._write.description,
            headers={
                "X-Upload-Content-Length": str(self._write.size),
                "X-Upload-Content-Type": self._write.description["contentType"],
            },
            timeout=TIMEOUT,
        )
        if reply.status_code == NOT_FOUND:
            raise missing_bucket(self._origin, name.bucket)
        check_answer(reply)
        if "Location" not in reply.headers:
            raise self._failed("the store gives no address for the upload session; check `endpoint`")
        return reply.headers["Location"]

    def _send_chunks(self, body: Body) -> tuple[Any, str]:
        """Return the finished object of the store's answer, and the checksum of the bytes sent."""
        sent, crc = 0, 0
        while True:
            data = next_part(body, self._chunk)
            crc = extended(crc, data)
            last = sent + len(data) >= self._write.size
            if last:
                drain(body)  # a wrong body raises at its end
            # With its checksum the store refuses a damaged object instead of making it visible.
            headers = {"X-Goog-Hash": f"crc32c={crc32c_of(crc)}"} if last else {}
            finished = self._send_chunk(data, sent, headers)
            sent += len(data)
            del data  # before the next one is filled
            if finished is not None:
                return finished, crc32c_of(crc)
            if last:
                raise self._failed("the store does not finish the upload")

    def _send_chunk(self, data: bytearray, start: int, headers: Mapping[str, str]) -> Any | None:
        """Send one chunk, in as many requests as the store needs; return the object when the upload is finished."""
        broken = False
        held = start
        view = memoryview(data)

        def attempt() -> Any | None:
            nonlocal held, broken
            if broken:  # only the store knows how much of it has arrived
                held, finished = self._asked()
                if finished is not None:
                    return finished
                if held < start:
                    raise self._failed("the store has lost bytes that it had accepted")
            broken = True
            end = start + len(data)
            while held < end:
                before = held
                held, finished = self._put(view[held - start :], held, headers)
                if finished is not None:
                    return finished
                if not before < held <= end:
                    raise self._failed(
                        f"the store tells of {held} bytes after it was sent those from {before} to {end}"
                    )
            return None

        try:
            return retry()(attempt)()
        except SDK_ERRORS as error:
            raise without_address(error) from None

    def _put(self, data: memoryview, start: int, headers: Mapping[str, str]) -> tuple[int, Any | None]:
        total = self._write.size
        spread = f"bytes {start}-{start + len(data) - 1}/{total}"
        return self._told(self._request("PUT", {"Content-Range": spread, **headers}, data))

    def _asked(self) -> tuple[int, Any | None]:
        return self._told(self._request("PUT", {"Content-Range": f"bytes */{self._write.size}"}))

    def _told(self, reply: requests.Response) -> tuple[int, Any | None]:
        """Return how many bytes the store has, and the object if that is all of them."""
        if reply.status_code == _INCOMPLETE:
            _, _, end = reply.headers.get("Range", "").rpartition("-")
            return (int(end) + 1 if end.isdecimal() else 0), None
        if reply.status_code in _ENDED:
            raise Aborted("the upload session was ended")  # the object under the key decides
        check_answer(reply)
        return self._write.size, blob_of(reply)

    def _request(self, method: str, headers: Mapping[str, str], data: bytes | memoryview = b"") -> requests.Response:
        return self._connection.session.request(
            method, self._session, data=data, headers=dict(headers), timeout=TIMEOUT, allow_redirects=False
        )

    def _cancel(self) -> None:
        with suppress(*SDK_ERRORS):  # must not replace the error above; the session ends after a week
            self._request("DELETE", {})

    def _check(self, blob: Any, crc: str) -> None:
        """Delete the object if its checksum is wrong, because a store may ignore the checksum's header."""
        if (blob.size, blob.crc32c or crc) == (self._write.size, crc):
            return
        take_back(self._connection, self._write.name, self._write.writer)
        raise self._failed("the bytes were damaged on the way")

    def _failed(self, reason: str) -> StorageError:
        return Unavailable(f"{self._origin.store}: {self._write.what}: {reason}")
