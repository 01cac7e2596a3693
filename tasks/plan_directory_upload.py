"""Plan the upload of a directory: its files are listed once, and each page uploads some lines of the list."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from worker.artifacts import upload_lists
from worker.artifacts.directory_listing import DirectoryListing, Filters
from worker.artifacts.page_selection import page_sizes
from worker.artifacts.sources import SourceRefused
from worker.artifacts.upload_lists import Lines, ListedFile
from worker.catalogue import Batch
from worker.context import JobContext
from worker.jobs.running_job import RunningJob
from worker.storage.errors import NotFound
from worker.storage.keys import check_bucket
from zot_artifact_client.contract import (
    BatchFailure,
    BatchRequest,
    BatchResult,
    LinesSelection,
    ListedSelection,
    PageRequest,
)

_ROW = 500
"""Files of a directory that are recorded at a time."""


def begin_upload(request: BatchRequest, context: JobContext, job: RunningJob) -> tuple[dict[str, Any], int, int]:
    """Return the cursor at the beginning of the list, and how many files and bytes it names.

    A directory is listed first, into the catalogue.

    Raises:
        SourceRefused, NotFound: the directory is not below a root, or is none.
        BadKeyList: a line of the list names no file.
    """
    if request.directory is not None:
        job.step("listing the directory")
        listing = _list(request, context, job)
        cursor, count, size = _problems(listing), listing.count, listing.size
    else:
        assert request.keys_from is not None
        job.step("reading the list")
        listed = upload_lists.check(request.keys_from, context.settings, job.heartbeat, job=job.id)
        cursor, count, size = {"file": request.keys_from, "tag": listed.tag}, listed.count, listed.size
    if not count and not cursor.get("refused"):
        raise _nothing_there(request)
    return {"offset": 0, **cursor}, count, size


def count_upload(request: BatchRequest, context: JobContext, job: RunningJob) -> BatchResult:
    """Return what an upload of a directory would read: its files count as `would_upload`. Nothing is written.

    Raises:
        SourceRefused, NotFound: the directory is not below a root, is none, or has no file to upload.
    """
    job.step("listing the directory")
    listing = _listing(request, context)
    files = listing.files()
    while list(islice(files, _ROW)):
        job.heartbeat()
    if not listing.count and not listing.failed:
        raise _nothing_there(request)
    counts = {"would_upload": listing.count, "failed": listing.failed}
    failures = tuple(BatchFailure(job="", outcome="failed", **each) for each in _problems(listing)["problems"])
    return BatchResult(
        verb=request.verb, objects=listing.count + listing.failed, bytes=listing.size,
        outcomes={outcome: count for outcome, count in counts.items() if count},
        failed=listing.failed, failures=failures,
    )  # fmt: skip


def _nothing_there(request: BatchRequest) -> NotFound:
    return NotFound(f"{request.directory or request.keys_from}: there is no file there to upload")


def _listing(request: BatchRequest, context: JobContext) -> DirectoryListing:
    directory = _directory(request.directory or "", context)
    filters = Filters(request.include, request.exclude, request.symlinks)
    return DirectoryListing(directory, check_bucket(request.bucket or ""), request.prefix, filters)


def _list(request: BatchRequest, context: JobContext, job: RunningJob) -> DirectoryListing:
    """Record the files of a directory in the catalogue."""
    listing = _listing(request, context)
    files, begin = listing.files(), 0
    while lines := [file.line() for file in islice(files, _ROW)]:
        context.catalogue.upload_lists.append(job.id, begin, b"".join(lines))
        begin += len(lines)
        job.heartbeat()
    return listing


def _problems(listing: DirectoryListing) -> dict[str, Any]:
    named = [{"bucket": listing.bucket, "key": path, "message": reason} for path, reason in listing.problems]
    return {"problems": named, "refused": listing.failed}


def _directory(name: str, context: JobContext) -> Path:
    path = Path(os.path.realpath(name))
    roots = [root.resolve() for root in context.settings.sources.roots]
    if not Path(name).is_absolute() or not any(root == path or root in path.parents for root in roots):
        raise SourceRefused(f"directory {name}: it is not under a configured root; add it to sources.roots")
    if not path.is_dir():
        raise NotFound(f"directory {name}: there is no such directory")
    return path


def next_upload_pages(
    request: BatchRequest, context: JobContext, before: Batch, room: int
) -> tuple[list[tuple[PageRequest, int]], dict[str, Any], bool]:
    """Return the next pages with their bytes, the cursor after them, and whether they are the last.

    Raises:
        NotFound: the list is gone, because the batch had ended before it was redriven.
        BadKeyList, SourceRefused, AccessDenied: the list is a file that was changed, or that cannot be opened.
    """
    cursor, most = dict(before.cursor), context.settings.page
    left = max(0, (before.total or 0) - int(cursor.get("planned", 0)))
    shared = {"verb": "upload", "stores": request.stores, **request.beside_bytes}
    with _lines_from(cursor, context, before.job) as lines:
        sizes = page_sizes(most.objects, left)
        extents = upload_lists.extents(lines, objects=sizes, size=most.size, limit=room)
    exhausted = len(extents) < room
    if exhausted and "file" not in cursor and sum(extent.count for extent in extents) != left:
        raise _gone(before.job)
    pages: list[tuple[PageRequest, int]] = []
    for extent in extents:
        pages.append((PageRequest.read({**shared, **_selection(cursor, extent.end, before.job)}), extent.size))
        cursor |= {"offset": extent.end, "planned": int(cursor.get("planned", 0)) + extent.count}
    return pages, cursor, exhausted


def _gone(batch: str) -> NotFound:
    way_out = "send the upload again; what is stored already is not written again"
    return NotFound(f"the list of batch {batch} is gone, because the batch has ended: {way_out}")


def _lines_from(cursor: Mapping[str, Any], context: JobContext, batch: str) -> AbstractContextManager[Lines]:
    """Return the lines of the list of a batch from its cursor on."""
    if "file" not in cursor:
        return nullcontext(upload_lists.of_batch(context.catalogue, batch, cursor["offset"]))
    return upload_lists.opened(cursor["file"], context.settings, batch, offset=cursor["offset"], tag=cursor["tag"])


def _selection(cursor: Mapping[str, Any], end: int, batch: str) -> dict[str, Any]:
    """Return the field of a page's request that selects the files from the cursor on."""
    if "file" not in cursor:
        return {"listed": ListedSelection(batch=batch, begin=cursor["offset"], end=end)}
    return {"lines": LinesSelection(file=cursor["file"], offset=cursor["offset"], end=end, tag=cursor["tag"])}


def files_of(request: PageRequest, context: JobContext, job: str) -> list[ListedFile]:
    """Return all files of a page of an upload.

    Raises:
        BadKeyList: the list was changed since it was checked.
        NotFound: the list is gone, because the batch has ended.
        SourceRefused, AccessDenied: the list is a file that cannot be opened.
    """
    if (listed := request.listed) is not None:
        found = upload_lists.up_to(upload_lists.of_batch(context.catalogue, listed.batch, listed.begin), listed.end)
        if len(found) != listed.end - listed.begin:
            raise _gone(listed.batch)
        return found
    assert request.lines is not None
    lines = request.lines
    with upload_lists.opened(lines.file, context.settings, job, offset=lines.offset, tag=lines.tag) as found_lines:
        return upload_lists.up_to(found_lines, lines.end)
