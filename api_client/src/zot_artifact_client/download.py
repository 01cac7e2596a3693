"""Read an artifact from the gateway: each chunk is verified by its SHA-256 before any byte of it is returned."""

import hashlib
import io
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol
from uuid import uuid4

from zot_artifact_client.chunk_cache import Chunk, ChunkCache
from zot_artifact_client.connection import PerProcess
from zot_artifact_client.contract import QUERY_SHOW, UPLOAD, Progress, ShowRequest, ShowResult
from zot_artifact_client.errors import ArtifactChanged, ClientError, DamagedBytes
from zot_artifact_client.file_upload import send_file
from zot_artifact_client.gateway import Gateway, artifact_path
from zot_artifact_client.job_ids import scoped_key

_WHOLE = 16 * 1024 * 1024
"""The size of the pieces in which an artifact without recorded chunks is read, once it was verified as a whole."""
_TRIES = 3
"""How often a chunk that arrives damaged is fetched."""
_WRITE_SIZE = 256 * 1024
"""Most bytes of one write to a file: for more, Linux may look for as much memory in one piece, which takes long."""
_SIDE_BY_SIDE = 3
"""Chunks that `get` fetches at a time: one is received while another is verified and written."""
_BUFFER = 64 * 1024


class Chunks(Protocol):
    """One version of an artifact, by its chunks; safe for threads."""

    shown: ShowResult
    chunk_size: int

    @property
    def size(self) -> int:
        """Return the size of the artifact in bytes."""
        return self.shown.size

    @property
    def chunks(self) -> int:
        """Return the number of chunks."""
        return (self.size + self.chunk_size - 1) // self.chunk_size

    def chunk(self, number: int) -> Chunk:
        """Return the verified bytes of a chunk. Raise ArtifactChanged, DamagedBytes, NoGoodCopy."""
        ...

    def close(self) -> None:
        """Remove what was spooled."""
        ...


class RemoteArtifact(Chunks):
    """The Chunks of an artifact that a gateway serves.

    Raises:
        ArtifactNotFound: there is none.
        NotAllowed: the gateway refuses the token.
        GatewayUnavailable: the gateway does not answer.
    """

    def __init__(self, gateway: Gateway, cache: ChunkCache | None, bucket: str, key: str) -> None:
        self._gateway = gateway
        self._cache = cache
        self._at = (bucket, key)
        self._path = artifact_path("objects", bucket, key)
        self._lock = PerProcess(threading.Lock)
        self._parts: dict[int, tuple[str, ...]] = {}
        self._spool: IO[bytes] | None = None
        self.shown = self._show(0)
        manifest = self.shown.manifest
        self.chunk_size = manifest.chunk_size if manifest else _WHOLE
        self._part_length = len(manifest.sha256) if manifest else 0
        if manifest:
            if manifest.chunk_size < 1 or manifest.total != self.chunks or bool(manifest.sha256) != bool(self.chunks):
                raise self._damaged(f"a size of {self.size} bytes and {manifest.total} chunks do not fit together")
            self._parts[0] = manifest.sha256

    def chunk(self, number: int) -> Chunk:
        """Return the verified bytes of a chunk.

        Raises:
            ArtifactChanged: the artifact has other bytes now.
            DamagedBytes, NoGoodCopy: the right bytes cannot be read.
            ArtifactNotFound, NotAllowed, GatewayUnavailable: it cannot be read.
        """
        if self.shown.manifest is None:
            return self._of_spool(number)
        sha256, size = self._sha256(number), min(self.chunk_size, self.size - number * self.chunk_size)

        def fetch() -> Chunk:
            return self._fetch(number * self.chunk_size, size, sha256)

        return fetch() if self._cache is None else self._cache.chunk(sha256, size, fetch)

    def close(self) -> None:
        """Remove what was spooled."""
        if self._spool is not None:
            self._spool.close()

    def _fetch(self, offset: int, size: int, sha256: str) -> bytearray:
        for _ in range(_TRIES):
            found = bytearray(size)
            self._gateway.fetch(self._path, memoryview(found), offset, self.shown.sha256)
            if hashlib.sha256(found).hexdigest() == sha256:
                return found
        raise self._damaged(f"{size} bytes from {offset} arrived {_TRIES} times without their SHA-256 {sha256}")

    def _damaged(self, what: str) -> DamagedBytes:
        between = f"see what is between this machine and gateway {self._gateway.url}"
        return DamagedBytes(f"{'/'.join(self._at)}: {what}; {between}")

    def _show(self, first: int) -> ShowResult:
        bucket, key = self._at
        return self._gateway.query(QUERY_SHOW, ShowRequest(bucket=bucket, key=key, chunks_from=first))

    def _sha256(self, number: int) -> str:
        """Return the digest of a chunk; the manifest of a large artifact comes in parts."""
        part, place = divmod(number, self._part_length)
        with self._lock.get():
            if part not in self._parts:
                shown = self._show(part * self._part_length)
                if (shown.version, shown.sha256) != (self.shown.version, self.shown.sha256) or shown.manifest is None:
                    raise ArtifactChanged(f"{'/'.join(self._at)} has other bytes now: open it again")
                self._parts[part] = shown.manifest.sha256
            if place >= len(self._parts[part]):
                raise self._damaged(f"the digest of chunk {number} is not among those that arrived")
            return self._parts[part][place]

    def _of_spool(self, number: int) -> bytes:
        """Return bytes of an artifact without recorded chunks: it is spooled until its whole digest is known."""
        with self._lock.get():
            if self._spool is None:
                self._spool = self._spooled()
            # A forked process has the same place in the file.
            return os.pread(self._spool.fileno(), self.chunk_size, number * self.chunk_size)

    def _spooled(self) -> IO[bytes]:
        spool: IO[bytes] = tempfile.TemporaryFile(prefix="zot-artifact-")  # noqa: SIM115 - closed by `close`
        digest = hashlib.sha256()

        def give(piece: memoryview) -> None:
            digest.update(piece)
            spool.write(piece)

        try:
            self._gateway.stream(self._path, self.shown.sha256, give)
            if (digest.hexdigest(), spool.tell()) != (self.shown.sha256, self.size):
                raise self._damaged("the bytes arrived without their SHA-256 or their size")
            spool.flush()
        except BaseException:
            spool.close()
            raise
        return spool


class ArtifactFile(io.RawIOBase):
    """An artifact as a file: seekable, read-only, with one or two chunks in memory.

    It stays the version that it was when it was opened: once that is replaced, a read raises ArtifactChanged.
    """

    def __init__(self, remote: Chunks) -> None:
        super().__init__()
        self._remote = remote
        self._place = 0
        self._held: tuple[int, Chunk] | None = None
        self._ahead: tuple[int, Future[Chunk]] | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    @property
    def shown(self) -> ShowResult:
        """Return the version that is read, with its digest and metadata."""
        return self._remote.shown

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._remote.size}
        if whence not in base or base[whence] + offset < 0:
            msg = f"seek: {offset} from {whence} is no place of the artifact"
            raise ValueError(msg)
        self._place = base[whence] + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        if self.closed:
            msg = "the artifact was closed"
            raise ValueError(msg)
        view = memoryview(buffer).cast("B")
        if self._place >= self._remote.size or not len(view):
            return 0
        number, start = divmod(self._place, self._remote.chunk_size)
        found = memoryview(self._chunk(number))[start : start + len(view)]
        view[: len(found)] = found
        self._place += len(found)
        return len(found)

    def close(self) -> None:
        if not self.closed:
            self._leave_behind()
            if self._reader is not None:
                self._reader.shutdown(wait=True, cancel_futures=True)
            self._held = self._ahead = None
            self._remote.close()
        super().close()

    def _leave_behind(self) -> None:
        """Forget the thread that reads ahead in a process that was forked: it is the parent's."""
        if self._process != os.getpid():
            self._process, self._ahead, self._reader = os.getpid(), None, None

    def _chunk(self, number: int) -> Chunk:
        self._leave_behind()
        if self._held is not None and self._held[0] == number:
            return self._held[1]
        follows = self._held is not None and number == self._held[0] + 1
        self._held = None
        ahead, self._ahead = self._ahead, None
        found = ahead[1].result() if ahead is not None and ahead[0] == number else self._remote.chunk(number)
        self._held = (number, found)
        if follows and number + 1 < self._remote.chunks:  # a reader that reads on gets the next chunk meanwhile
            self._reader = self._reader or ThreadPoolExecutor(1, thread_name_prefix="zot-artifact-read-ahead")
            self._ahead = (number + 1, self._reader.submit(self._remote.chunk, number + 1))
        return found


class ArtifactBytes:
    """The bytes of artifacts, over a gateway, with a cache for what is read: what both clients share."""

    def __init__(
        self, gateway: str | None, token: str | None, cache: ChunkCache | None, service: str | None = None
    ) -> None:
        if (gateway is None) != (token is None):
            raise ClientError("gateway and token go together")
        self.gateway = None if gateway is None or token is None else Gateway(gateway, token)
        self._cache = cache
        self._service = service

    def remote(self, bucket: str, key: str) -> Chunks:
        """Return an artifact to read. Raise as RemoteArtifact."""
        if self.gateway is None:
            raise ClientError("bytes come from the gateway: give gateway and token")
        return RemoteArtifact(self.gateway, self._cache, bucket, key)

    def open(self, bucket: str, key: str) -> io.BufferedReader:
        """Return an artifact as a buffered file; its `raw` is the ArtifactFile."""
        return io.BufferedReader(ArtifactFile(self.remote(bucket, key)), _BUFFER)

    def get(
        self, bucket: str, key: str, path: str | os.PathLike[str], on_progress: Callable[[Progress], object] | None
    ) -> ShowResult:
        """Write an artifact to a file; see `download`."""
        remote = self.remote(bucket, key)
        try:
            download(remote, path, on_progress)
        finally:
            remote.close()
        return remote.shown

    def send(
        self,
        path: str | os.PathLike[str],
        fields: Mapping[str, object],
        *,
        idempotency_key: str | None,
        on_progress: Callable[[Progress], object] | None,
    ) -> str:
        """Send a file for an upload; see `send_file`."""
        if self.gateway is None:
            raise ClientError("bytes go over the gateway: give gateway and token")
        key = None if idempotency_key is None else scoped_key(UPLOAD, idempotency_key, self._service)
        return send_file(self.gateway, path, fields, idempotency_key=key, on_progress=on_progress)

    def warm(self, bucket: str, key: str, on_progress: Callable[[Progress], object] | None = None) -> ShowResult:
        """Bring all chunks of an artifact into the cache."""
        if self._cache is None:
            raise ClientError("this client has no cache: give cache=ChunkCache(root)")
        remote = self.remote(bucket, key)
        done = 0
        try:
            for number in range(remote.chunks):
                done += len(remote.chunk(number))
                if on_progress is not None:
                    on_progress(Progress(bytes_done=done, bytes_total=remote.size, step="warming"))
        finally:
            remote.close()
        return remote.shown

    def close(self) -> None:
        """Close the connections of this process."""
        if self.gateway is not None:
            self.gateway.close()


def download(remote: Chunks, path: str | os.PathLike[str], on_progress: Callable[[Progress], object] | None) -> None:
    """Write a remote artifact to a file, which appears under its name when all bytes are there and durable.

    Raises:
        OSError: the file cannot be written.
        ClientError: as RemoteArtifact; no file is left, and a file that was there stays.
    """
    target = Path(path)
    shown = target.name.encode(errors="ignore")[:200].decode(errors="ignore")  # a name has at most 255 bytes
    new = target.with_name(f".{shown}.{uuid4().hex[:8]}.part")
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        try:
            done = 0
            for count in _side_by_side(remote, file):
                done += count
                if on_progress is not None:
                    on_progress(Progress(bytes_done=done, bytes_total=remote.size, step="downloading"))
            os.fsync(file)
        finally:
            os.close(file)
        new.replace(target)
        _sync_directory(target.parent)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def _side_by_side(remote: Chunks, file: int) -> Iterator[int]:
    """Fetch, verify and write the chunks, some at a time; yield the size of each that was written."""

    def write(number: int) -> int:
        left, place = memoryview(remote.chunk(number)), number * remote.chunk_size
        size = len(left)
        while left:
            count = os.pwrite(file, left[:_WRITE_SIZE], place)
            left, place = left[count:], place + count
        return size

    pool = ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="zot-artifact-get")
    numbers = iter(range(remote.chunks))
    try:
        window = deque(pool.submit(write, number) for number in islice(numbers, 2 * _SIDE_BY_SIDE))
        while window:
            yield window.popleft().result()
            window.extend(pool.submit(write, number) for number in islice(numbers, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
