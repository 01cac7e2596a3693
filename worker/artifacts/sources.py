"""Sources of uploads: files under configured roots and URLs of configured hosts, and nothing else."""

import errno
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import urllib3

from worker.settings import Settings
from worker.storage.driver import Digest
from worker.storage.errors import (
    AccessDenied,
    DigestMismatch,
    NotFound,
    OutOfSpace,
    PermanentError,
    SizeMismatch,
    Throttled,
    Timeout,
    Unavailable,
)
from worker.storage.integrity.manifest import Manifest, compute_digests
from worker.storage.integrity.verifying_reader import BUFFER_SIZE, OnBytes

logger = logging.getLogger(__name__)

_MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}


class SourceRefused(PermanentError):
    """The source is not one that the settings allow."""


@dataclass(frozen=True, slots=True)
class Source:
    """The bytes of an upload, in a file on this machine that can be read several times."""

    name: str
    file: BinaryIO
    size: int

    def rewind(self) -> BinaryIO:
        """Return the file, positioned at its first byte."""
        self.file.seek(0)
        return self.file

    def digests(self, sha256: str | None, on_bytes: OnBytes) -> tuple[Digest, Manifest]:
        """Read all bytes and return their digest, as a whole and by chunks.

        Raises:
            DigestMismatch: they do not have the SHA-256 that was announced.
        """
        digest, manifest = compute_digests(self.rewind(), size=self.size, what=self.name, on_bytes=on_bytes)
        if sha256 is not None and digest.sha256 != sha256:
            raise DigestMismatch(f"{self.name} has SHA-256 {digest.sha256}, announced was {sha256}")
        return digest, manifest


@contextmanager
def open_source(name: str, settings: Settings) -> Iterator[Source]:
    """Open a source: an absolute path or an http(s) URL. A URL is downloaded to a temporary file first.

    Raises:
        SourceRefused: it is neither, or not one that the settings allow; names the setting that would allow it.
        NotFound: the file or the resource does not exist.
        AccessDenied: the worker may not read it.
        TransientError: the host does not answer, or asks for a retry later.
        OutOfSpace: the data directory has no space left for the download.
    """
    scheme = urlsplit(name).scheme if "://" in name else ""
    if scheme in {"http", "https"}:
        with _download(name, settings) as file:
            yield Source(_without_query(name), file, os.fstat(file.fileno()).st_size)
    elif scheme:
        raise SourceRefused(f"source {name!r}: only files and http(s) URLs can be uploaded")
    else:
        with _open_file(name, settings) as file:
            yield Source(name, file, os.fstat(file.fileno()).st_size)


def remove_staged(name: str, settings: Settings) -> None:
    """Remove a file that was staged for one job, and the job's own directory; no other file, whatever the name."""
    path = Path(os.path.realpath(name))
    if path.parent.parent != settings.staging_dir.resolve():
        return
    try:
        path.unlink(missing_ok=True)
        path.parent.rmdir()
    except FileNotFoundError:
        return  # an earlier delivery of the job has done it
    except OSError as error:
        logger.warning("the staged file %s cannot be removed: %s", path, error.strerror)


_TRANSIENT = {errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM}

# Files


def _open_file(name: str, settings: Settings) -> BinaryIO:
    path = Path(name)
    roots = [root.resolve() for root in (*settings.sources.roots, settings.staging_dir)]
    if not path.is_absolute():
        raise SourceRefused(f"source {name!r}: give an absolute path")
    if not _inside(Path(os.path.realpath(path)), roots):
        raise SourceRefused(f"source {name}: it is not under a configured root; add its directory to sources.roots")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # non-blocking: a FIFO must not hold a worker
    except FileNotFoundError:
        raise NotFound(f"source {name}: there is no such file") from None
    except PermissionError:
        raise AccessDenied(f"source {name}: the worker may not read it") from None
    except OSError as error:
        if error.errno in _TRANSIENT:
            raise Unavailable(f"source {name}: {error.strerror}") from error
        raise SourceRefused(f"source {name}: {error.strerror}") from error
    opened = Path(os.path.realpath(f"/proc/self/fd/{fd}"))
    # Checked again on what was opened: a link may have changed between the check and the opening.
    if not stat.S_ISREG(os.fstat(fd).st_mode) or (opened.exists() and not _inside(opened, roots)):
        os.close(fd)  # before it is a file object: of a directory none can be made, and the descriptor would stay open
        raise SourceRefused(f"source {name}: only regular files under a configured root can be uploaded")
    return os.fdopen(fd, "rb", buffering=0)


def _inside(path: Path, roots: list[Path]) -> bool:
    return any(root in path.parents for root in roots)


# URLs


@contextmanager
def _download(url: str, settings: Settings) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile(dir=settings.spool_dir, prefix="zot-spool-") as spool:
        response = _get(url, settings)
        try:
            _copy(response, spool, _without_query(url), settings.sources.max_size)
        finally:
            response.release_conn()
            response.close()
        yield spool


def _get(url: str, settings: Settings) -> urllib3.BaseHTTPResponse:
    seconds = settings.sources.timeout.total_seconds()
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=min(seconds, 10), read=seconds), retries=False)
    for _ in range(_MAX_REDIRECTS + 1):
        _check_host(url, settings.sources.hosts)
        try:
            response = pool.request(
                "GET", url, headers={"Accept-Encoding": "identity"}, redirect=False, preload_content=False
            )
        except urllib3.exceptions.TimeoutError as error:
            raise Timeout(f"source {_without_query(url)}: no answer within {seconds:.0f} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"source {_without_query(url)}: {type(error).__name__}") from error
        if response.status not in _REDIRECTS:
            _check_status(response, _without_query(url))
            return response
        url = urljoin(url, response.headers.get("Location", ""))
        response.close()
    raise SourceRefused(f"source {_without_query(url)}: more than {_MAX_REDIRECTS} redirects")


def _check_host(url: str, hosts: tuple[str, ...]) -> None:
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    if origin in hosts or (parts.scheme == "https" and parts.netloc in hosts):
        return
    raise SourceRefused(f"source {_without_query(url)}: {origin} is not a configured host; add it to sources.hosts")


def _check_status(response: urllib3.BaseHTTPResponse, name: str) -> None:
    status = response.status
    if status == 200:  # noqa: PLR2004 - the only answer that is the whole object
        return
    response.close()
    if status in {404, 410}:
        raise NotFound(f"source {name}: the host answers {status}, it does not exist")
    if status in {401, 403}:
        raise AccessDenied(f"source {name}: the host answers {status}; sources must be readable without credentials")
    if status in {429, 503}:
        after = response.headers.get("Retry-After", "")
        raise Throttled(f"source {name}: the host answers {status}", float(after) if after.isdigit() else None)
    if status == 408 or status >= 500:  # noqa: PLR2004 - RFC 9110
        raise Unavailable(f"source {name}: the host answers {status}")
    raise SourceRefused(f"source {name}: the host answers {status}")


def _copy(response: urllib3.BaseHTTPResponse, spool: BinaryIO, name: str, max_size: int | None) -> None:
    size = 0
    try:
        for piece in response.stream(BUFFER_SIZE, decode_content=False):
            size += len(piece)
            if max_size is not None and size > max_size:
                raise SizeMismatch(f"source {name}: larger than sources.max_size, {max_size} bytes")
            spool.write(piece)
        spool.flush()
    except urllib3.exceptions.TimeoutError as error:
        raise Timeout(f"source {name}: the host stopped sending after {size} bytes") from error
    except urllib3.exceptions.HTTPError as error:
        raise Unavailable(f"source {name}: the connection broke after {size} bytes") from error
    except OSError as error:
        raise OutOfSpace(
            f"source {name}: no space left for the download in the data directory: {error.strerror}"
        ) from error


def _without_query(url: str) -> str:
    return url.split("?", 1)[0].split("#", 1)[0]
