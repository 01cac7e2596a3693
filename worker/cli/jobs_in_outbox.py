"""Find jobs that wait in their queues: the outbox of the broker has them, and the ledger does not yet."""

import re
from typing import TYPE_CHECKING, Any

from worker import clock
from worker.catalogue import JobRecord
from worker.settings import Settings
from worker.settings.model import NoBroker
from zot_artifact_client.contract import JOB_ID, TASKS, JobState

if TYPE_CHECKING:
    from zot_artifact_client.outgoing_messages import Outgoing

_PAGE = 1000
_MOST_PAGES = 500
"""Pages of the outbox that are searched for the beginning of an id."""
_BEGINNING = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SECONDS = 5.0


def jobs_in_outbox(settings: Settings, beginning: str, *, limit: int) -> list[JobRecord]:
    """Return jobs of the outbox whose ids are `beginning`, else those whose ids begin with it, `limit` at most.

    A broker that keeps no outbox has none.

    Raises:
        BrokerUnavailable: the broker does not answer, or refuses the question.
    """
    from zot_artifact_client.broker_urls import parse_url, redis_client
    from zot_artifact_client.connection import broker_errors

    if not _BEGINNING.fullmatch(beginning):
        return []
    try:
        url = settings.broker_url
    except NoBroker:
        return []
    if not parse_url(url).is_redis:
        return []
    with (
        broker_errors("broker", url),
        redis_client(url, socket_connect_timeout=_SECONDS, socket_timeout=_SECONDS) as client,
    ):
        found = _messages(client, beginning, limit)
        records = [_record(client, id_, message) for id_, message in sorted(found.items())]
    return [record for record in records if record is not None]


def _messages(client: Any, beginning: str, limit: int) -> dict[str, bytes]:
    from zot_artifact_client.outgoing_messages import MESSAGES

    if (whole := client.hget(MESSAGES, beginning)) is not None:
        return {beginning: whole}
    found: dict[str, bytes] = {}
    cursor = 0
    for _ in range(_MOST_PAGES):
        cursor, page = client.hscan(MESSAGES, cursor, match=f"{beginning}*", count=_PAGE)
        names = {name.decode(errors="replace"): message for name, message in page.items()}  # of other programs, too
        found |= {name: message for name, message in names.items() if JOB_ID.fullmatch(name)}
        if not cursor or len(found) >= limit:
            break
    return dict(sorted(found.items())[:limit])


def _record(client: Any, id_: str, message: bytes) -> JobRecord | None:
    from worker.jobs.outbox import outgoing_in

    sent: Outgoing | None = outgoing_in(client, id_, message)
    if sent is None or sent.name not in TASKS:
        return None
    return JobRecord(
        id=id_, kind=TASKS[sent.name].kind, request=sent.payload, state=JobState.QUEUED.value, attempts=0, fence=0,
        created_at=sent.sent_at or clock.now(), queue=sent.queue,
    )  # fmt: skip
