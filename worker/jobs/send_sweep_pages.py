"""Send the pages of a sweep: the ledger has them before their messages are sent, so that a crash loses none.

A batch sends its jobs in the same way, step by step: see `tasks.batch`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import redis
from kombu.exceptions import OperationalError

from worker import clock
from worker.catalogue import Catalogue, PlannedPage
from zot_artifact_client.contract import PAGE, PageRequest, batch_stem
from zot_artifact_client.outgoing_messages import Outgoing

logger = logging.getLogger(__name__)

UNSEEN = timedelta(hours=1)
"""The time after which a job is sent again where the broker cannot tell whether its message is lost."""
BROKER_ERRORS = (redis.RedisError, OperationalError, OSError)


class Messages(Protocol):
    """The messages of a batch's or sweep's jobs on the broker."""

    def send(self, jobs: list[Outgoing]) -> None:
        """Send jobs; sending is idempotent."""
        ...

    def lost(self, ids: list[str]) -> set[str] | None:
        """Return which of these unstarted jobs have no message; None if the broker cannot tell."""
        ...


@dataclass(frozen=True, slots=True)
class Claimed:
    """The artifacts that the planner has claimed for a page until this moment.

    `findings`: the copies whose findings the page is about, by store, bucket and key.
    """

    artifacts: Sequence[int]
    until: datetime
    findings: Sequence[tuple[str, str, str]] = ()


def page_id(parent: str, number: int) -> str:
    """Return the id of a job of a sweep or batch, by its number in it, from 1 on: ids sort in planning order."""
    return f"{batch_stem(parent)}.{number:08d}"


def plan(
    catalogue: Catalogue,
    sweep: str,
    requests: Sequence[PageRequest],
    messages: Messages,
    claimed: Sequence[Claimed] | None = None,
) -> None:
    """Accept the pages of a sweep into the ledger, with what they act on, and send their messages.

    `claimed`: what each of them works on.
    """
    now = clock.now()
    planned = [PlannedPage(page_id(sweep, number), each.payload()) for number, each in enumerate(requests, 1)]
    if claimed is not None:
        planned = [
            replace(page, objects=of.artifacts, claimed_until=of.until, findings=of.findings)
            for page, of in zip(planned, claimed, strict=True)
        ]
    try:
        told = messages.lost([]) is not None
    except BROKER_ERRORS:
        told = False
    catalogue.pages.plan(sweep, planned, queue=PAGE.queue.value, due=None if told else now + UNSEEN, now=now)
    _send(sweep, planned, messages)


def resume(sweep: str, planned: Sequence[PlannedPage], messages: Messages) -> int:
    """Send the pages that were planned and whose messages are lost, or were never sent; return how many."""
    waiting = [page for page in planned if page.waits]
    lost = messages.lost([page.job for page in waiting])
    unsent = [page for page in waiting if lost is None or page.job in lost]
    _send(sweep, unsent, messages)
    return len(unsent)


def _send(sweep: str, planned: Sequence[PlannedPage], messages: Messages) -> None:
    queue = PAGE.queue.value
    if planned:
        messages.send([Outgoing(PAGE.name, each.job, queue, dict(each.request), parent=sweep) for each in planned])
