"""Plan the upload of a directory: its files are listed once, and each page uploads some lines of the list."""

import os
from pathlib import Path
from typing import Any

from worker.artifacts import upload_lists
from worker.artifacts.directory_listing import DirectoryListing, Filters
from worker.artifacts.page_selection import page_sizes
from worker.artifacts.sources import SourceRefused, staged_directory
from worker.catalogue import Batch
from worker.context import JobContext
from worker.jobs.running_job import RunningJob
from worker.storage.errors import NotFound, OutOfSpace
from worker.storage.keys import check_bucket
from zot_artifact_client.contract import (
    BatchRequest,
    LinesSelection,
    PageRequest,
)

_LIST = "list"
_HEARTBEAT_FILES = 1000


def begin_upload(
    request: BatchRequest, context: JobContext, job: RunningJob
) -> tuple[dict[str, Any], int, int]:  # fmt: skip
    """Return the cursor at the beginning of the list, and how many files and bytes it names.

    A directory is listed first, into a file beside what is staged for the job.

    Raises:
        SourceRefused, NotFound: the directory is not below a root, or is none.
        BadKeyList: a line of the list names no file.
    """
    problems: dict[str, Any] = {}
    name = request.keys_from
    if request.directory is not None:
        job.step("listing the directory")
        name, problems = _list(request, request.directory, context, job)
    assert name is not None
    job.step("reading the list")
    listed = upload_lists.check(name, context.settings, job.heartbeat, job=job.id)
    if not listed.count and not problems.get("refused"):
        raise NotFound(f"{request.directory or name}: there is no file there to upload")
    return {"file": name, "offset": 0, "tag": listed.tag, **problems}, listed.count, listed.size


def _list(request: BatchRequest, name: str, context: JobContext, job: RunningJob) -> tuple[str, dict[str, Any]]:
    directory = _directory(name, context)
    bucket = check_bucket(request.bucket or "")
    filters = Filters(request.include, request.exclude, request.symlinks)
    listing = DirectoryListing(directory, bucket, request.prefix, filters)
    staged = staged_directory(context.settings, job.id)
    try:
        staged.mkdir(mode=0o700, exist_ok=True)
        with (staged / _LIST).open("wb") as file:
            for listed in listing.files():
                file.write(listed.line())
                if listing.count % _HEARTBEAT_FILES == 0:
                    job.heartbeat()
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutOfSpace(f"{staged}: the list of {name} cannot be written: {error.strerror}") from error
    problems = [{"bucket": bucket, "key": path, "message": reason} for path, reason in listing.problems]
    return str(staged / _LIST), {"problems": problems, "refused": listing.failed}


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
    """Return the next pages with their bytes, the cursor after them, and whether they are the last."""
    cursor, most = dict(before.cursor), context.settings.page
    left = max(0, (before.total or 0) - int(cursor.get("planned", 0)))
    extents = upload_lists.extents(
        cursor["file"], context.settings, offset=cursor["offset"], tag=cursor["tag"], job=before.job,
        objects=page_sizes(most.objects, left), size=most.size, limit=room,
    )  # fmt: skip
    shared = {"verb": "upload", "stores": request.stores, **request.beside_bytes}
    pages: list[tuple[PageRequest, int]] = []
    for extent in extents:
        lines = LinesSelection(file=cursor["file"], offset=cursor["offset"], end=extent.end, tag=cursor["tag"])
        pages.append((PageRequest.read({**shared, "lines": lines}), extent.size))
        cursor |= {"offset": extent.end, "planned": int(cursor.get("planned", 0)) + extent.count}
    return pages, cursor, len(extents) < room


def files_of(request: PageRequest, context: JobContext, job: str) -> list[upload_lists.ListedFile]:
    """Return all files of a page of an upload."""
    lines = request.lines
    assert lines is not None
    return upload_lists.read(lines.file, context.settings, offset=lines.offset, end=lines.end, tag=lines.tag, job=job)
