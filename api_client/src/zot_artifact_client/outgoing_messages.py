"""Make the messages of jobs, and send each with its entry in the outbox, in one round trip.

Redis can lose a message: between handing it out and having it marked as taken, it exists only in a worker's memory. So
the client also leaves the message of a job in the outbox, from which the worker removes it once the job is in the
ledger. What stays there too long is sent again, under the same id, which is idempotent.
"""

import base64
import json
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from celery import Celery

from zot_artifact_client.text_escaping import without_secrets
from zot_artifact_client.tracing import trace_headers

MESSAGES = "zot-artifacts:outbox"
"""The Redis hash, in the broker, of the messages whose jobs no worker has taken over yet, by id."""
ORDER = "zot-artifacts:outbox:{queue}"
"""The Redis sorted set of their ids, by queue, each with the second it was sent."""

_SHOWN = 1024
"""Characters of a request that Flower gets to see, as with any other message of Celery's."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One job on its way to the broker. `payload` is the request as JSON.

    A `parent` is the job that sends this one as its own, and looks for its end in the ledger: no result is kept for it.
    What `expires` after some seconds is a query: it is dropped then, and has no entry in the outbox.
    `sent_at` is when it was sent, of a job that was found in the outbox.
    """

    name: str
    job_id: str
    queue: str
    payload: dict[str, object]
    parent: str | None = None
    expires: float | None = None
    sent_at: datetime | None = None


def push(pipeline: Any, app: Celery, jobs: list[Outgoing]) -> None:
    """Add to a Redis pipeline what sends these jobs; the entry comes before the message, so none is without one."""
    now = time.time()
    messages = {job.job_id: envelope(app, job) for job in jobs}
    kept = {job.job_id for job in jobs if job.expires is None}
    for id_ in kept:
        pipeline.hsetnx(MESSAGES, id_, messages[id_])  # never the entry of another request with the same id
    for queue in dict.fromkeys(job.queue for job in jobs):
        ids = [job.job_id for job in jobs if job.queue == queue]
        if entries := dict.fromkeys((id_ for id_ in ids if id_ in kept), now):
            pipeline.zadd(ORDER.format(queue=queue), entries)
        pipeline.lpush(queue, *(messages[id_] for id_ in ids))


def envelope(app: Celery, job: Outgoing) -> str:
    """Return a job's message, in version 2 of Celery's protocol, as Redis holds it."""
    options = {"parent_id": job.parent, "root_id": job.parent, "ignore_result": True} if job.parent else {}
    shown = without_secrets(repr(job.payload))  # Celery's own way to it takes as long as all the rest together
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    message = app.amqp.as_task_v2(
        job.job_id, job.name, kwargs=job.payload, argsrepr="()", kwargsrepr=shown, expires=job.expires, **options
    )  # fmt: skip
    properties = {
        **message.properties,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": job.queue},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid4()),
    }
    body = json.dumps(message.body).encode()
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": message.headers | trace_headers(),
            "properties": properties,
        }
    )


def with_new_delivery_tag(message: str) -> str:
    """Return the same message to be sent once more: Redis knows the deliveries that are under way by their tags."""
    sent: dict[str, Any] = json.loads(message)
    sent["properties"]["delivery_tag"] = str(uuid4())
    return json.dumps(sent)
