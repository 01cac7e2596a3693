"""The objects of a page: from a range of keys, or from the lines of a file."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from worker.artifacts import key_lists
from worker.catalogue import Batch, Catalogue, ListedArtifact, Page, SeenVersions
from worker.jobs.running_job import RunningJob
from worker.settings import Settings
from worker.settings.section_models import PageSettings
from zot_artifact_client.contract import LinesSelection, PageRequest, RangeSelection

_SHARES = 4
"""Pages into which a small batch is split, so that as many processes work on it: one page is done by one process."""
_FEWEST = 100
"""The fewest objects of such a page: each page costs transactions of its own."""


class PageObject(NamedTuple):
    """An object of a page. `id` is that of the artifact, or the number of the line.

    `artifact_id`: None if there is no artifact. `end` is where the object after it begins: after this key, or at this
    offset of the file.
    """

    id: int
    bucket: str
    key: str
    size: int
    artifact_id: int | None
    end: str | int

    @property
    def path(self) -> str:
        return f"{self.bucket}/{self.key}"


def select(request: PageRequest, catalogue: Catalogue, settings: Settings, batch: str) -> list[PageObject]:
    """Return the objects of a page, in its order.

    Raises:
        BadKeyList: the file was changed since it was checked.
        SourceRefused, NotFound, AccessDenied: the file cannot be opened.
    """
    if request.range is not None:
        seen = seen_by(catalogue.batches.get(batch), request.range.newest)
        return list(_in_range(request.range, seen, catalogue, settings.page.objects + 1))
    assert request.lines is not None
    return _in_lines(request.lines, catalogue, settings, batch)


def open_objects(request: PageRequest, page: Page | None, job: RunningJob, batch: str) -> list[PageObject]:
    """Return the objects of a page that have no outcome yet, in its order; `page`: its progress, None at its start.

    Raises:
        BadKeyList, SourceRefused, NotFound, AccessDenied: see `select`.
    """
    if page is None:
        return select(request, job.catalogue, job.settings, batch)
    if request.lines is None:  # versions that were replaced since the page began are among them
        return [artifact_object(artifact) for artifact in job.catalogue.artifacts.listed_by_ids(page.open)]
    still = set(page.open)
    return [each for each in select(request, job.catalogue, job.settings, batch) if each.id in still]


def cursor_of(seen: SeenVersions) -> dict[str, object]:
    """Return the part of a batch's cursor that says which versions existed when it began."""
    return {"last": seen.newest} | ({"unfinished": list(seen.unfinished)} if seen.unfinished else {})


def seen_by(batch: Batch | None, newest: int | None = None) -> SeenVersions:
    """Return the versions that existed when a batch began: it must not change, and above all not delete, later ones.

    If the catalogue does not have the batch, such as after a restore, these are the versions up to `newest`. Without
    that, or if another version of the worker began the batch, they are all versions.
    """
    cursor, last = batch.cursor if batch else {}, sys.maxsize if newest is None else newest
    return SeenVersions(cursor.get("last", last), frozenset(cursor.get("unfinished", ())))


def limits_of(most: PageSettings, total: int | None) -> PageSettings:
    """Return the limits of the pages of a batch of so many objects; a small batch has several pages too."""
    if total is None:
        return most
    return most.model_copy(update={"objects": next(page_sizes(most.objects, total))})


def page_sizes(most: int, left: int) -> Iterator[int]:
    """Yield, without end, the number of objects of each next page of a batch that has `left` objects left.

    The last pages are smaller, so that no process works long while the others have nothing left to do.
    """
    while True:
        size = min(most, max(_FEWEST, -(-left // _SHARES)))
        yield size
        left = max(0, left - size)


def split(objects: Iterable[PageObject], most: PageSettings) -> Iterator[list[PageObject]]:
    """Yield the objects of each page, in order; one that is too large for a page is alone."""
    page: list[PageObject] = []
    size = 0
    for each in objects:
        large = each.size > most.large
        if page and (large or len(page) >= most.objects or size + each.size > most.size):
            yield page
            page, size = [], 0
        page.append(each)
        size += each.size
        if large:
            yield page
            page, size = [], 0
    if page:
        yield page


def _in_range(
    selection: RangeSelection, seen: SeenVersions, catalogue: Catalogue, at_once: int
) -> Iterator[PageObject]:
    after = selection.after
    while True:
        found = catalogue.artifacts.listing(
            selection.bucket, selection.prefix, after, at_once, seen=seen, until=selection.until
        )
        yield from map(artifact_object, found)
        if len(found) < at_once:
            return
        after = found[-1].key


def _in_lines(selection: LinesSelection, catalogue: Catalogue, settings: Settings, job: str) -> list[PageObject]:
    lines = key_lists.page(
        selection.file, settings, offset=selection.offset, tag=selection.tag, limit=settings.page.objects * 2, job=job
    )
    return of_lines([line for line in lines if line.end <= selection.end], catalogue)


def of_lines(lines: Sequence[key_lists.Line], catalogue: Catalogue) -> list[PageObject]:
    """Return the objects that lines of a key list name; `id` counts from 1."""
    found = catalogue.artifacts.currents((line.bucket, line.key) for line in lines)
    return [
        PageObject(
            number, line.bucket, line.key, artifact.digest.size if artifact else 0,
            artifact.id if artifact else None, line.end,
        )
        for number, line in enumerate(lines, 1)
        for artifact in [found.get((line.bucket, line.key))]
    ]  # fmt: skip


def artifact_object(artifact: ListedArtifact) -> PageObject:
    """Return an artifact as an object of a page."""
    return PageObject(*artifact, artifact.id, artifact.key)
