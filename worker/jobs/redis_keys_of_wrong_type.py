"""Rename the keys of the worker in Redis that another program has written with another type.

Every command on such a key is an error: one of them would stop the recovery of all jobs, or the clients.
"""

import logging
from collections.abc import Mapping
from typing import Any

from celery import Celery

from worker.intake.catalogue_of_broker import CATALOGUE
from worker.intake.delayed import DELAYED
from worker.intake.rejected import COUNTS, LATEST
from worker.jobs.outbox import RESENDS, redis_of_broker
from worker.jobs.republish_results import CURSOR
from worker.jobs.unacked import UNACKED, UNACKED_INDEX
from worker.limits.check_pauses import PAUSED_QUEUES
from worker.limits.shared_redis import redis_of_celery
from zot_artifact_client.cancellation import CANCEL_REQUESTS
from zot_artifact_client.contract import Queue
from zot_artifact_client.contract.queues import UNROUTED
from zot_artifact_client.outgoing_messages import MESSAGES, ORDER

logger = logging.getLogger(__name__)

_QUEUES = (*(queue.value for queue in Queue), UNROUTED)
_IN_BROKER = {
    **dict.fromkeys(_QUEUES, "list"),
    **{name.format(queue=queue): "zset" for name in (ORDER, DELAYED) for queue in _QUEUES},
    MESSAGES: "hash", RESENDS: "hash", UNACKED: "hash", UNACKED_INDEX: "zset", LATEST: "list", COUNTS: "hash",
    CATALOGUE: "string",
}  # fmt: skip
_IN_BACKEND = {CANCEL_REQUESTS: "zset", CURSOR: "string", PAUSED_QUEUES: "set"}


def move_wrong_types(app: Celery) -> None:
    """Rename each key of the worker that has another type than it must have; nothing is deleted."""
    with redis_of_broker(app) as client:
        if client is not None:
            _move(client, _IN_BROKER)
    if (backend := redis_of_celery(app)) is not None:
        _move(backend, _IN_BACKEND)


def _move(client: Any, types: Mapping[str, str]) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for name in types:
            pipeline.type(name)
        found = pipeline.execute()
    for name, type_ in zip(types, found, strict=True):
        if type_ not in {b"none", types[name].encode()}:
            logger.error("Redis: %s is a %s of another program: renamed to %s:foreign", name, type_.decode(), name)
            client.rename(name, f"{name}:foreign")
