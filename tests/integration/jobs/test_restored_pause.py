"""A queue stays paused after Redis has lost the pause."""

import json
from pathlib import Path
from uuid import uuid4

import redis

from tests.hostile_messages import envelope
from tests.servers import Valkey
from tests.servers.worker import Worker
from tests.waiting import until
from worker import clock
from worker.catalogue import Catalogue, Scope
from worker.limits.check_pauses import PAUSED_QUEUES, mirror_queues, paused_queues

FIELDS = {"bucket": "releases", "key": "absent.tgz"}


def test_a_worker_that_starts_obeys_a_pause_that_redis_has_lost(valkey: Valkey, tmp_path: Path):
    """The pause of the catalogue is in Redis again before the first message: a job of that queue waits, others run."""
    worker = Worker(tmp_path, valkey.url, concurrency=1)
    worker.home.mkdir(parents=True)
    catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
    with redis.Redis.from_url(valkey.url) as broker:
        catalogue.pauses.begin(Scope.QUEUE, "transfer", reason=None, now=clock.now())
        broker.lpush("transfer", json.dumps(envelope(job := str(uuid4()), FIELDS, queue="transfer")))
        with worker:
            until(lambda: "queue transfer is paused" in worker.log)
            assert paused_queues(broker) == {"transfer"}
            broker.lpush("interactive", json.dumps(envelope(other := str(uuid4()), FIELDS)))
            until(lambda: (found := catalogue.ledger.get(other)) and found.finished_at)
            assert (broker.llen("transfer"), catalogue.ledger.get(job)) == (1, None)
    catalogue.close()


def test_pauses_that_redis_has_lost_resume_no_queue(valkey: Valkey):
    """A worker changes nothing until they are copied again: nothing paused is another answer than nothing known."""
    with redis.Redis.from_url(valkey.url) as broker:
        mirror_queues(broker, [])
        assert paused_queues(broker) == set()
        broker.delete(PAUSED_QUEUES)
        assert paused_queues(broker) is None
