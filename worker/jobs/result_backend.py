"""Keep what came of a job in the result backend, in one round trip: every job does it twice, and waits for it."""

from functools import cached_property
from typing import Any

from celery import Celery
from celery.backends import redis
from celery.states import FAILURE

# Celery asks in one round trip whether a success is there, which stays whatever else is said of the job later, and
# writes in another. Here nothing can come in between.
_KEEP = """
local kept = redis.call('GET', KEYS[1])
if kept and cjson.decode(kept)['status'] == 'SUCCESS' then
  return 0
end
if tonumber(ARGV[2]) > 0 then
  redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
"""


class _AtomicStore:
    """What a result backend in Redis does otherwise than Celery's; mixed into both kinds that Celery has."""

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_: Any
    ) -> Any:
        backend: Any = self
        meta = backend._get_result_meta(result=result, state=state, traceback=traceback, request=request)  # noqa: SLF001
        kept = backend.encode(meta | {"task_id": task_id})
        seconds = backend.failure_expires if state == FAILURE else backend.expires
        self._keep(keys=[backend.get_key_for_task(task_id)], args=[kept, int(seconds or 0)])
        return result

    @cached_property
    def _keep(self) -> Any:
        return self.client.register_script(_KEEP)  # type: ignore[attr-defined]


class Redis(_AtomicStore, redis.RedisBackend):
    """Results in Redis."""


class Sentinel(_AtomicStore, redis.SentinelBackend):
    """Results in Redis behind Sentinel."""


def use_atomic_result_backend(app: Celery) -> None:
    """Let an application keep its results so, wherever its URL says that they are."""
    redis_, sentinel = f"{__name__}:Redis", f"{__name__}:Sentinel"
    app.loader.override_backends = {"redis": redis_, "rediss": redis_, "sentinel": sentinel}
