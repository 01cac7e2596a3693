"""Parts are planned so that every object fits into them, and into memory, however large it is."""

import errno
import hashlib
import io
import os
import resource
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.storage.config import AzureConfig, GcsConfig, S3Config, StoreConfig
from worker.storage.configured_stores import open_driver
from worker.storage.errors import OutOfSpace, PermanentError
from worker.storage.integrity.verifying_reader import VerifyingReader, drain
from worker.storage.transfer.multipart import MEMORY, plan_upload
from worker.storage.transfer.split_into_parts import MIB, SpooledPart, plan_parts, spool_part

CONFIGS: dict[str, StoreConfig] = {
    "amazon": S3Config(bucket="real"),
    "s3": S3Config(bucket="real", endpoint="http://127.0.0.1:1"),
    "gcs": GcsConfig(bucket="real", anonymous=True, endpoint="http://127.0.0.1:1"),
    "azure": AzureConfig(container="real", account_url="http://127.0.0.1:1/account", account_key="a2V5"),
}
CONTENT = bytes(range(256)) * (4 * MIB // 256) + b"the end"


@pytest.mark.parametrize("name", CONFIGS)
@given(share=st.floats(0, 1))
@example(share=0.0)
@example(share=1.0)
@settings(deadline=None)  # the first example imports an SDK
def test_memory_is_bounded_up_to_the_largest_object(name: str, share: float) -> None:
    """For every size that a store takes, its parts hold the object, and a transfer holds no more than its budget."""
    capabilities = open_driver(name, CONFIGS[name]).capabilities
    limits, largest = capabilities.parts, capabilities.max_object_size
    assert limits is not None
    assert largest is not None
    size = min(largest, max(1, round(largest ** (share))))  # as many small ones as large ones
    part = plan_parts(size, min_part=limits.min_size, max_part=limits.max_size, max_parts=limits.max_parts)
    assert part * limits.max_parts >= size
    sending = plan_upload(part)
    assert sending.prepared >= 1
    assert sending.spooled or (sending.prepared + 1) * part <= MEMORY


def body(content: bytes = CONTENT) -> VerifyingReader:
    return VerifyingReader(io.BytesIO(content))


def test_a_part_on_the_disk_can_be_sent_again(tmp_path: Path) -> None:
    """A part on the disk has its size and SHA-256, reads the same as often as it is asked for, and has no name."""
    with spool_part(body(), 3 * MIB, tmp_path) as part:
        assert (len(part), part.sha256) == (3 * MIB, hashlib.sha256(CONTENT[: 3 * MIB]).hexdigest())
        for _ in range(2):
            assert part.read() == CONTENT[: 3 * MIB]
            part.seek(0)
        assert list(tmp_path.iterdir()) == []


def test_parts_on_the_disk_follow_each_other(tmp_path: Path) -> None:
    """The last part has what is left, and after it comes an empty one."""
    source = body()
    sizes = []
    for _ in range(3):
        with spool_part(source, 3 * MIB, tmp_path) as part:
            sizes.append(len(part))
    assert sizes == [3 * MIB, len(CONTENT) - 3 * MIB, 0]
    assert source.digest.size == len(CONTENT)


def test_other_bytes_on_the_disk_are_not_sent(tmp_path: Path) -> None:
    """What comes back from the disk other than it was put there is an error before its last byte is out."""
    with spool_part(body(), len(CONTENT), tmp_path) as part:
        part._file.seek(MIB)
        part._file.write(b"rot")
        part.seek(0)
        with pytest.raises(OSError, match="other bytes"):
            drain(part)


def test_no_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is OutOfSpace and names the directory; too many open files, which may pass, are no full disk.

    A directory that is not there, or cannot be written, is named too.
    """
    with pytest.raises(PermanentError, match=f"no file can be made in {tmp_path}/absent"):
        spool_part(body(), MIB, tmp_path / "absent")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.open(tmp_path, os.O_RDONLY))  # with less, `poll` of another thread raises EINVAL
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError, match="open files") as caught:
            spool_part(body(), MIB, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE

    def append(_part: SpooledPart, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SpooledPart, "append", append)
    with pytest.raises(OutOfSpace, match=f"{tmp_path}.*make room") as full:
        spool_part(body(), MIB, tmp_path)
    assert full.value.store == "", "it counts against no store"


def test_a_source_that_fails_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the source breaks off, the part that was begun is closed."""
    made: list[SpooledPart] = []
    append = SpooledPart.append

    def noted(part: SpooledPart, data: bytes) -> None:
        made.append(part)
        append(part, data)

    monkeypatch.setattr(SpooledPart, "append", noted)
    with pytest.raises(OSError, match="cable"):
        spool_part(Breaking(), 3 * MIB, tmp_path)
    assert made
    assert made[0].closed


class Breaking(VerifyingReader):
    """A body whose second piece never comes."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(CONTENT))
        self._pieces = 0

    def read(self, size: int, /) -> bytes:
        self._pieces += 1
        if self._pieces > 1:
            raise ConnectionResetError("the cable was pulled")
        return super().read(size)
