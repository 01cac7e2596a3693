"""Remove what was staged for uploads whose jobs are not open any more: files here, and parts in stores."""

import logging
import shutil
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from celery import current_app

from worker import clock
from worker.artifacts.parts_staged_in_store import is_staged_in_store, old_uploads, read_source
from worker.catalogue import Catalogue
from worker.jobs.outbox import Outbox
from worker.jobs.running_job import RunningJob
from worker.limits.limited_store import LimitedStore
from worker.storage import Match
from worker.storage.errors import PreconditionFailed
from worker.storage.keys import UPLOADS_BUCKET
from zot_artifact_client.connection import BROKER_ERRORS

logger = logging.getLogger(__name__)


def remove_unneeded_parts(store: LimitedStore, catalogue: Catalogue, age: timedelta) -> int:
    """Remove the parts of uploads that no open job needs, and return how many uploads those were of."""
    old = old_uploads(store, clock.earliest() - age)
    waiting, sources = _needed(set(old), catalogue)
    wanted = {read_source(source)[:2] for source in sources if is_staged_in_store(source)}
    gone = [upload for upload in old if upload not in waiting and (store.name, upload) not in wanted]
    for upload in gone:
        for part in old[upload]:
            with suppress(PreconditionFailed):  # it has been sent again since it was listed
                store.delete_object(UPLOADS_BUCKET, part.key, condition=Match(part.version))
        logger.info("%s: removed what was staged for upload %s", store.name, upload)
    return len(gone)


def remove_unneeded_files(job: RunningJob, age: timedelta) -> int:
    """Remove staged sources that no open job needs, and what killed commands left in the spool directory."""
    settings = job.settings
    removed = 0
    for path in _old(settings.spool_dir, age):
        _remove(path)
        removed += 1
    staged = {path: path.with_name(path.name.removesuffix(".upload")) for path in _old(settings.staging_dir, age)}
    waiting, sources = _needed({directory.name for directory in staged.values()}, job.catalogue)
    for path, directory in staged.items():
        if directory.name not in waiting and not any(source.startswith(f"{directory}/") for source in sources):
            _remove(path)
            removed += 1
    return removed


def _needed(jobs: set[str], catalogue: Catalogue) -> tuple[set[str], set[str]]:
    """Return those of these jobs that no worker has taken, and the sources of all open jobs."""
    if not jobs:
        return set(), set()
    waiting = _waiting(jobs)  # first: a job is in the ledger before it leaves the outbox, so that it is in one of them
    return waiting, catalogue.ledger.sources_of_open_jobs()


def _waiting(jobs: set[str]) -> set[str]:
    """Return those of these jobs that no worker has taken; all of them if the broker cannot be asked.

    A broker that is no Redis does not have them by id: what is staged for a job waits no longer than `age` there.
    """
    try:
        lost = Outbox(current_app).lost(sorted(jobs))
    except BROKER_ERRORS as error:
        logger.warning("staged files stay for now: the outbox cannot be read: %s", type(error).__name__)
        return jobs
    return set() if lost is None else jobs - lost


def _old(directory: Path, age: timedelta) -> list[Path]:
    return [path for path in directory.iterdir() if _last_change(path) <= clock.earliest() - age]


def _last_change(path: Path) -> datetime:
    """Return when a file, or what is in a directory, was last written; a link is not followed."""
    try:
        times = [path.lstat().st_mtime]
    except FileNotFoundError:  # the gateway has just renamed it
        return clock.now()
    if path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError):
            times += [each.lstat().st_mtime for each in path.iterdir()]
    return datetime.fromtimestamp(max(times), UTC)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
