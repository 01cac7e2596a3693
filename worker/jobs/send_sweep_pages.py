"""Send the pages of a sweep: the ledger has them before their messages are sent, so that a crash loses none.

A batch sends its jobs in the same way, step by step: see `tasks.batch`.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from worker import clock
from worker.catalogue import Artifact, Catalogue, Plan, PlannedPage
from zot_artifact_client.connection import BROKER_ERRORS
from zot_artifact_client.contract import PAGE, ClaimSelection, PageRequest, batch_stem
from zot_artifact_client.outgoing_messages import Outgoing

UNSEEN = timedelta(hours=1)
"""The time after which a job is sent again where the broker cannot tell whether its message is lost."""


class Messages(Protocol):
    """The messages of a batch's or sweep's jobs on the broker."""

    def send(self, jobs: list[Outgoing]) -> None:
        """Send jobs; sending is idempotent."""
        ...

    def lost(self, ids: list[str]) -> set[str] | None:
        """Return which of these unstarted jobs have no message; None if the broker cannot tell."""
        ...


def page_id(parent: str, number: int) -> str:
    """Return the id of a job of a sweep or batch, by its number in it, from 1 on: ids sort in planning order."""
    return f"{batch_stem(parent)}.{number:08d}"


def plan(catalogue: Catalogue, sweep: str, requests: Sequence[PageRequest], messages: Messages) -> None:
    """Accept the pages of a sweep into the ledger, each of which claims what it works on, and send their messages."""
    now = clock.now()
    planned = [PlannedPage(page_id(sweep, number), each.payload()) for number, each in enumerate(requests, 1)]
    catalogue.pages.plan(sweep, planned, queue=PAGE.queue.value, due=_due(messages, now), now=now)
    _send(sweep, planned, messages)


class PlanOfClaims:
    """The pages of one run of a sweep that claims their objects; the claims and their pages are one transaction.

    So a killed worker leaves no claim without a page: such objects could not be claimed again until the claim expires.
    """

    def __init__(self, catalogue: Catalogue, sweep: str, messages: Messages) -> None:
        self._catalogue = catalogue
        self._sweep = sweep
        self._messages = messages
        self._planned: list[PlannedPage] = []
        self._due = _due(messages, clock.now())

    @property
    def next_id(self) -> str:
        """Return the id of the job of the next page."""
        return page_id(self._sweep, len(self._planned) + 1)

    def pages_of(
        self, store: str, *, objects: int, now: datetime, until: datetime, late_since: datetime | None = None
    ) -> Plan:
        """Return a function that accepts pages which replicate the claimed artifacts to a store, `objects` in each.

        `until`: when the claims expire. A page names the findings of its artifacts committed before `late_since`.
        """
        request = PageRequest(verb="replicate", claim=ClaimSelection(store=store), to=(store,)).payload()

        def late(found: Sequence[Artifact]) -> list[tuple[str, str, str]]:
            if late_since is None:
                return []
            return [(store, of.bucket, of.key) for of in found if (of.committed_at or until) <= late_since]

        def accept(connection: Any, claimed: Sequence[Artifact]) -> None:
            for start in range(0, len(claimed), objects):
                some = claimed[start : start + objects]
                page = PlannedPage(
                    self.next_id, request, objects=[of.id for of in some], claimed_until=until, findings=late(some)
                )
                self._planned.append(page)
                self._catalogue.pages.accept(
                    connection, self._sweep, [page], queue=PAGE.queue.value, due=self._due, now=now
                )

        return accept

    def send(self) -> None:
        """Send the messages of all pages."""
        _send(self._sweep, self._planned, self._messages)


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


def _due(messages: Messages, now: datetime) -> datetime | None:
    """Return when to send jobs again that no worker has taken, None where the broker tells whether they are lost."""
    try:
        return None if messages.lost([]) is not None else now + UNSEEN
    except BROKER_ERRORS:
        return now + UNSEEN
