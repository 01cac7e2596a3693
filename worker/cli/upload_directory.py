"""Upload the files of a directory: list them, make them readable for the worker, and send one batch."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from worker.artifacts.batch_lists import ListedFile
from worker.artifacts.directory_listing import DirectoryListing, Filters
from worker.cli.arguments import no_stream
from worker.cli.errors import Failure, UsageError
from worker.cli.job_outcome import Outcome
from worker.cli.output import complain, note, print_json, say
from worker.cli.send_and_wait import Sender, WaitOptions, request_of, sender
from worker.cli.session import Session
from worker.cli.stage_file import has_changed, within_roots
from worker.counted import counted
from worker.exit_status import Status
from worker.readable import size
from worker.settings import Settings
from worker.settings.private_data_directory import sync_directory
from worker.storage.keys import check_bucket, check_key_prefix
from zot_artifact_client.contract import BATCH, BatchRequest
from zot_artifact_client.errors import ClientError
from zot_artifact_client.job_ids import choose_id

_COPY = 1 << 26
_PIECE = 1 << 20
_OF_THE_STAGING_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_NO_FILE = "it is no regular file any more"


def listing_of(source: str, target: str, filters: Filters) -> DirectoryListing:
    """Return the listing of a directory whose files go to BUCKET or BUCKET/PREFIX.

    Raises:
        Failure: there is no such directory.
        InvalidKey: naming the rule that bucket or prefix breaks.
    """
    directory = no_stream(source).absolute()
    bucket, _, prefix = target.partition("/")
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    try:
        if not stat.S_ISDIR(directory.stat().st_mode):
            raise UsageError(f"source {directory} is no directory; leave out --recursive")
    except OSError as error:
        raise Failure(f"source {directory}: {error.strerror}", type_="NotFound") from None
    return DirectoryListing(directory, check_bucket(bucket), check_key_prefix(prefix), filters)


def dry_run(listing: DirectoryListing, *, as_json: bool) -> Status:
    """Print what an upload of the directory would read, and return the exit status."""
    for _ in listing.files():
        pass
    if as_json:
        print_json(
            {"objects": listing.count, "bytes": listing.size, "symlinks_skipped": listing.links,
             "special_files_skipped": listing.special, **not_sent(listing)}
        )  # fmt: skip
    else:
        say(f"{counted(listing.count, 'file')}, {size(listing.size)} would be uploaded; nothing was sent")
    report(listing)
    return count_refused(listing)


def not_sent(listing: DirectoryListing) -> dict[str, Any]:
    """Return what cannot be uploaded as JSON documents have it."""
    failures = [{"path": path, "message": reason} for path, reason in listing.problems]
    return {"failed": listing.failed, "failures": failures}


def report(listing: DirectoryListing) -> None:
    """Print which files the listing skipped."""
    if listing.links:
        note(f"skipped: {counted(listing.links, 'symbolic link')}; --symlinks follow uploads what they refer to")
    if listing.special:
        note(f"skipped: {counted(listing.special, 'special file')} (devices, sockets, FIFOs)")
    for path, reason in listing.problems:
        complain(reason, about=str(listing.directory / path))
    if listing.failed > len(listing.problems):
        complain(f"and {listing.failed - len(listing.problems)} more")


def count_refused(listing: DirectoryListing) -> Status:
    """Print how many files cannot be uploaded, as the last line of a command, and return its exit status."""
    if listing.failed == 0:
        return Status.GOOD
    complain(f"not sent: {counted(listing.failed, 'path')}")
    return Status.BAD


def upload_directory(
    session: Session,
    listing: DirectoryListing,
    stores: tuple[str, ...] | None,
    beside: Mapping[str, object],
    waiting: WaitOptions,
) -> Outcome:
    """Send the upload of a directory as one batch, and wait for its end unless --no-wait is given.

    `beside` are the fields of the request that go to every file: metadata, headers, tags and storage classes.

    Raises:
        Failure: the list or the files cannot be staged; nothing was sent.
        BrokerUnavailable: nothing was sent; nothing is left in the staging directory.
    """
    job_id = choose_id(BATCH, idempotency_key=waiting.key)
    path = session.settings.staging_dir / job_id / listing.name
    fields: dict[str, object] = {"verb": "upload", "keys_from": str(path), "staged": True, "stores": stores}
    fields |= {"notify": waiting.notify or None, **beside}
    request: BatchRequest = request_of(BATCH, **fields)
    with sender(session, "listing", waiting) as way:
        known = way.known(BATCH, job_id, request)
        job = way.client.job(job_id, BATCH) if known else _send(way, job_id, request, listing, path)
        return way.wait(job)


def _send(way: Sender, job_id: str, request: BatchRequest, listing: DirectoryListing, path: Path) -> Any:
    fresh = _stage(listing, path, way.session.settings, way.shown.advance)
    try:
        return way.send(BATCH, job_id, request)
    except ClientError:
        if fresh:
            shutil.rmtree(path.parent, ignore_errors=True)
        raise


def _stage(listing: DirectoryListing, path: Path, settings: Settings, moved: Callable[[int], None]) -> bool:
    """Write the list. Files outside sources.roots are named by a hard link or a copy in the staging directory.

    Returns whether it is new; an earlier request with the same idempotency key may wait with the same one.
    """
    in_place = within_roots(listing.directory / "file", settings) and listing.filters.symlinks != "follow"
    partial = path.parent.with_name(f".zot-partial-{secrets.token_hex(8)}")
    try:
        partial.mkdir(mode=0o700)
        with (partial / path.name).open("wb") as file:
            for listed in listing.files():
                try:
                    readable = listed if in_place else _staged(listed, partial / str(listing.count), path.parent)
                except _NotStaged as error:
                    listing.refuse(listed.path, str(error))
                    continue
                file.write(readable.line())
                moved(listed.size)
            file.flush()
            os.fsync(file.fileno())
        if not listing.count:
            refused = f"; not sent: {counted(listing.failed, 'path')}" if listing.failed else ""
            raise Failure(f"source {listing.directory}: there is no file to upload in it{refused}", type_="NotFound")
        return _placed(partial, path)
    except OSError as error:
        raise Failure(
            f"source {listing.directory}: {'its list' if in_place else 'it'} cannot be staged in "
            f"{settings.staging_dir}: {error.strerror}; make room there"
            + ("" if in_place else ", or add the directory to sources.roots"),
            type_="StagingFailed",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _placed(partial: Path, path: Path) -> bool:
    """Rename what was staged to the directory of its job, unless an earlier request with the same key waits there."""
    sync_directory(partial)
    try:
        partial.rename(path.parent)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        if not path.exists():
            raise Failure(
                "the idempotency key was used for another directory, which waits for a worker: use another key for "
                "this one",
                Status.USAGE,
                type_="OtherRequest",
            ) from None
        return False
    sync_directory(path.parent.parent)
    return True


class _NotStaged(Exception):
    """A file cannot be staged; this stops no other file."""


def _staged(listed: ListedFile, path: Path, directory: Path) -> ListedFile:
    """Link a file into a directory that gets the name `directory`; copy it where that is impossible.

    It may be on another disk or belong to another user.

    Raises:
        _NotStaged: it cannot be read, is no regular file any more, or changed while it was copied.
        OSError: there is no room for it.
    """
    source = os.path.realpath(listed.path)
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno in _OF_THE_STAGING_DISK:
            raise
        _copy(source, path)
    found = path.lstat()  # a link to a symbolic link is one
    if not stat.S_ISREG(found.st_mode):
        path.unlink()
        raise _NotStaged(_NO_FILE)
    return ListedFile(listed.bucket, listed.key, str(directory / path.name), found.st_size, found.st_mtime_ns)


def _copy(source: str, path: Path) -> None:
    with _opened(source) as original:
        before = os.fstat(original.fileno())
        try:
            with path.open("xb") as copy:
                _copy_bytes(original, copy, before)
                copy.flush()
                os.fsync(copy.fileno())  # a power cut may leave its size without its bytes
            if has_changed(original, before):
                raise _NotStaged("it has changed while it was copied")
        except _NotStaged:
            path.unlink()
            raise


def _opened(source: str) -> BinaryIO:
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # to open a FIFO may never end
    except OSError as error:
        raise _NotStaged(error.strerror or str(error)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _NotStaged(_NO_FILE)
    return os.fdopen(fd, "rb", buffering=0)


def _copy_bytes(original: BinaryIO, copy: BinaryIO, before: os.stat_result) -> None:
    """Copy a file, sharing its blocks where the disk can; return early if it grows meanwhile: see `has_changed`."""
    count = 0
    try:
        while copied := os.copy_file_range(original.fileno(), copy.fileno(), _COPY):
            count += copied
            if has_changed(original, before, more_than=count):
                return
    except OSError:
        original.seek(0)
        copy.truncate(0)
        copy.seek(0)
        count = 0
        while piece := _read(original):
            copy.write(piece)
            count += len(piece)
            if has_changed(original, before, more_than=count):
                return


def _read(original: BinaryIO) -> bytes:
    try:
        return original.read(_PIECE)
    except OSError as error:
        raise _NotStaged(error.strerror or str(error)) from error
