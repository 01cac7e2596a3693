"""Plan the batches of a list, which upload or adopt: what they work on is listed once, and a page does some lines."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tasks.batch_jobs import PageJob, PlannedJobs
from worker.artifacts import batch_lists
from worker.artifacts.batch_lists import Lines, LineT, ListedAdoption, ListedFile, ListedLine
from worker.artifacts.directory_listing import DirectoryListing, Filters
from worker.artifacts.page_selection import page_sizes
from worker.artifacts.reconcile import in_order
from worker.artifacts.sources import SourceRefused
from worker.catalogue import Batch
from worker.jobs.running_job import RunningJob
from worker.limits.limited_store import LimitedStore
from worker.settings import Settings
from worker.storage.errors import InvalidKey, NotFound
from worker.storage.keys import check_bucket
from zot_artifact_client.contract import (
    ADOPT,
    UPLOAD,
    BatchFailure,
    BatchRequest,
    BatchResult,
    LinesSelection,
    ListedSelection,
    PageRequest,
)

LINES_OF: Mapping[str, type[ListedFile] | type[ListedAdoption]] = {UPLOAD.kind: ListedFile, ADOPT.kind: ListedAdoption}
"""By verb, the lines of the lists of its batches."""
_ROW = 500
"""Lines that are recorded at a time."""
_NAMED = 100
"""Objects with keys that cannot be adopted that the result names; it counts the others."""


def begin_listed(request: BatchRequest, job: RunningJob) -> tuple[dict[str, Any], int, int]:
    """Return the cursor at the beginning of the list, and how many objects and bytes it names.

    A directory, or a store, is listed first, into the catalogue.

    Raises:
        SourceRefused, NotFound: the directory is not below a root, or is none.
        NotFound: there is no file or object.
        BadKeyList: a line of the list names no file or object.
        StorageError, Snooze: the store could not be listed.
    """
    if request.keys_from is not None:
        job.step("reading the list")
        of = LINES_OF[request.verb]
        listed = batch_lists.check(request.keys_from, of, job.settings, job.heartbeat, job=job.id)
        cursor, count, size = {"file": request.keys_from, "tag": listed.tag}, listed.count, listed.size
        where = f"{request.keys_from}: there is nothing in it to {request.verb}"
    elif request.directory is not None:
        job.step("listing the directory")
        directory = _directory_listing(request, request.directory, job.settings)
        count, size = _record_lines(directory.files(), job)
        cursor, where = _problems(directory), f"{request.directory}: there is no file there to upload"
    else:
        [name] = request.stores or ()
        store = StoreListing(job.stores[name], check_bucket(request.bucket or ""), request.prefix)
        job.step(f"listing {name}")
        count, size = _record_lines(store.objects(), job)
        cursor, where = _problems(store), f"{name}: there is no object below {store.bucket}/{store.prefix}"
    if not count and not cursor.get("refused"):
        raise NotFound(where)
    return {"offset": 0, **cursor}, count, size


def count_upload(request: BatchRequest, job: RunningJob) -> BatchResult:
    """Return what an upload of a directory would read: its files count as `would_upload`. Nothing is written.

    Raises:
        SourceRefused, NotFound: the directory is not below a root, is none, or has no file to upload.
    """
    job.step("listing the directory")
    listing = _directory_listing(request, request.directory or "", job.settings)
    files = listing.files()
    while list(islice(files, _ROW)):
        job.heartbeat()
    if not listing.count and not listing.failed:
        raise NotFound(f"{request.directory}: there is no file there to upload")
    counts = {"would_upload": listing.count, "failed": listing.failed}
    failures = tuple(BatchFailure(job="", outcome="failed", **each) for each in _problems(listing)["problems"])
    return BatchResult(
        verb=request.verb, objects=listing.count + listing.failed, bytes=listing.size,
        outcomes={outcome: count for outcome, count in counts.items() if count},
        failed=listing.failed, failures=failures,
    )  # fmt: skip


@dataclass(slots=True)
class StoreListing:
    """The objects that a store lists below a prefix. What cannot be adopted is counted, and the first ones named."""

    store: LimitedStore
    bucket: str
    prefix: str
    failed: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Keys that no artifact can have, and why."""

    def objects(self) -> Iterator[ListedAdoption]:
        """Yield the others.

        Raises:
            StorageError, Snooze: the listing has not come to its end.
        """
        for row in in_order(self.store.name, self.store.list_objects(self.bucket, self.prefix)):
            found = ListedAdoption(self.bucket, row.key, row.size or 0)
            try:
                found.check()
            except InvalidKey as error:
                self.failed += 1
                if len(self.problems) < _NAMED:
                    self.problems.append((row.key, error.message))
            else:
                yield found


def _record_lines(lines: Iterator[ListedLine], job: RunningJob) -> tuple[int, int]:
    """Record what was listed in the catalogue, and return how many objects and bytes it is."""
    count = size = 0
    while some := list(islice(lines, _ROW)):
        job.catalogue.batch_lists.append(job.id, count, b"".join(each.line() for each in some))
        count, size = count + len(some), size + sum(each.size for each in some)
        job.heartbeat()
    return count, size


def _directory_listing(request: BatchRequest, name: str, settings: Settings) -> DirectoryListing:
    filters = Filters(request.include, request.exclude, request.symlinks)
    return DirectoryListing(_directory(name, settings), check_bucket(request.bucket or ""), request.prefix, filters)


def _problems(listing: DirectoryListing | StoreListing) -> dict[str, Any]:
    named = [{"bucket": listing.bucket, "key": path, "message": reason} for path, reason in listing.problems]
    return {"problems": named, "refused": listing.failed}


def _directory(name: str, settings: Settings) -> Path:
    path = Path(os.path.realpath(name))
    roots = [root.resolve() for root in settings.sources.roots]
    if not Path(name).is_absolute() or not any(root == path or root in path.parents for root in roots):
        raise SourceRefused(f"directory {name}: it is not under a configured root; add it to sources.roots")
    if not path.is_dir():
        raise NotFound(f"directory {name}: there is no such directory")
    return path


def next_listed_pages(request: BatchRequest, job: RunningJob, before: Batch, room: int) -> PlannedJobs:
    """Return the next pages, as many as there is room for.

    Raises:
        NotFound: the list is gone, because the batch had ended before it was redriven.
        BadKeyList, SourceRefused, AccessDenied: the list is a file that was changed, or that cannot be opened.
    """
    cursor, most = dict(before.cursor), job.settings.page
    left = max(0, (before.total or 0) - int(cursor.get("planned", 0)))
    shared = {"verb": request.verb, "stores": request.stores, **request.beside_bytes}
    shared |= {"first_read": True} if request.first_read else {}
    with _lines_from(cursor, LINES_OF[request.verb], job, before.job) as lines:
        sizes = page_sizes(most.objects, left)
        extents = batch_lists.extents(lines, objects=sizes, size=most.size, limit=room)
    exhausted = len(extents) < room
    if exhausted and "file" not in cursor and sum(extent.count for extent in extents) != left:
        raise _gone(before.job)
    pages: list[PageJob] = []
    for extent in extents:
        page = PageRequest.read({**shared, **_selection(cursor, extent.end, before.job)})
        pages.append(PageJob(page, extent.size))
        cursor |= {"offset": extent.end, "planned": int(cursor.get("planned", 0)) + extent.count}
    return PlannedJobs(pages, cursor, exhausted)


def _gone(batch: str) -> NotFound:
    way_out = "send it again; what is done already is not done again"
    return NotFound(f"the list of batch {batch} is gone, because the batch has ended: {way_out}")


def _lines_from(
    cursor: Mapping[str, Any], of: type[LineT], job: RunningJob, batch: str
) -> AbstractContextManager[Lines[LineT]]:
    """Return the lines of the list of a batch from its cursor on."""
    if "file" not in cursor:
        return nullcontext(batch_lists.of_batch(job.catalogue, of, batch, cursor["offset"]))
    return batch_lists.opened(cursor["file"], of, job.settings, batch, offset=cursor["offset"], tag=cursor["tag"])


def _selection(cursor: Mapping[str, Any], end: int, batch: str) -> dict[str, Any]:
    """Return the field of a page's request that selects the files from the cursor on."""
    if "file" not in cursor:
        return {"listed": ListedSelection(batch=batch, begin=cursor["offset"], end=end)}
    return {"lines": LinesSelection(file=cursor["file"], offset=cursor["offset"], end=end, tag=cursor["tag"])}


def lines_of(request: PageRequest, of: type[LineT], job: RunningJob, page: str) -> list[LineT]:
    """Return all lines of a page.

    Raises:
        BadKeyList: the list was changed since it was checked.
        NotFound: the list is gone, because the batch has ended.
        SourceRefused, AccessDenied: the list is a file that cannot be opened.
    """
    if (listed := request.listed) is not None:
        lines = batch_lists.of_batch(job.catalogue, of, listed.batch, listed.begin)
        found = batch_lists.up_to(lines, listed.end)
        if len(found) != listed.end - listed.begin:
            raise _gone(listed.batch)
        return found
    assert request.lines is not None
    at = request.lines
    with batch_lists.opened(at.file, of, job.settings, page, offset=at.offset, tag=at.tag) as lines:
        return batch_lists.up_to(lines, at.end)
