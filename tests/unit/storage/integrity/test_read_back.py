"""What a store took counts only once it was read back, whatever a first request says."""

import hashlib
import io
from dataclasses import replace
from typing import Any

import pytest

from tests.memory_driver import MemoryDriver
from worker.storage.driver import Capabilities, Condition, ObjectStat, WriteInfo
from worker.storage.errors import Unavailable
from worker.storage.integrity.manifest import Manifest
from worker.storage.integrity.read_back import ReadBack
from worker.storage.integrity.verifying_reader import VerifyingReader, drain

SENT = b"the bytes that were sent"


class LyingDriver(MemoryDriver):
    """A store that keeps other bytes than it gets, and whose requests for whole objects fail."""

    def __init__(self, kept: bytes) -> None:
        super().__init__("store")
        self.kept = kept

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, whole_reads=1000, patches=1)

    def read_whole(self, *_: Any, **__: Any) -> Any:
        raise Unavailable("store: no answer")

    def patch(self, _: ObjectStat, bucket: str, key: str, info: WriteInfo, *__: Any, **___: Any) -> ObjectStat:
        return self.put(bucket, key, VerifyingReader(io.BytesIO(self.kept)), info)


@pytest.mark.parametrize("kept", [SENT[:-1] + b"?", SENT[:-1], SENT + b"!", b""])
def test_other_bytes_than_were_sent_are_not_shown(kept: bytes) -> None:
    """Neither bytes of another size count, nor those that a first request could not read."""
    driver, body = LyingDriver(kept), VerifyingReader(io.BytesIO(SENT))

    def send(bucket: str, key: str, condition: Condition) -> ObjectStat:
        drain(body)
        return driver.put(bucket, key, VerifyingReader(io.BytesIO(driver.kept)), WriteInfo(), condition=condition)

    def write() -> ObjectStat:
        return ReadBack(driver).write(
            send, body, "b", "k", label="x", condition=None, storage_class=None, on_bytes=None
        )  # fmt: skip

    with pytest.raises(Unavailable, match="store: b/k: the bytes were damaged"):
        write()
    assert not any(list(driver.iter_objects(bucket)) for bucket in driver.list_buckets())
    driver.kept = SENT
    assert write().size == len(SENT)


def test_a_patched_object_with_more_bytes_than_its_chunks_is_not_shown() -> None:
    """All chunks of it are right, and it is another object."""
    driver = LyingDriver(SENT + b"!")
    found = driver.put("b", "k", VerifyingReader(io.BytesIO(b"?" + SENT[1:])), WriteInfo())
    size = len(SENT) // 2
    digests = [hashlib.sha256(SENT[at : at + size]).digest() for at in (0, size)]
    manifest = Manifest(len(SENT), size, b"".join(digests))

    def patch() -> ObjectStat | None:
        info, bad = WriteInfo(len(SENT)), [manifest.chunk(0)]
        back = ReadBack(driver)
        return back.patch(found, info, manifest, bad, lambda _: b"", between=lambda: None, on_bytes=None)

    assert patch() is None
    assert driver.stat("b", "k") == found
    driver.kept = SENT
    assert patch() == driver.stat("b", "k")
