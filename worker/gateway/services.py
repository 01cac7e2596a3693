"""What the gateway works with: catalogue, stores and broker, each used from a bounded number of threads."""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import redis
from celery import Celery

from worker import clock
from worker.artifacts.reading_order import AvoidedStores
from worker.catalogue import Artifact
from worker.context import Context
from worker.gateway.problems import Problem
from worker.gateway.staging import Staging
from worker.jobs.outbox import Outbox
from worker.limits.shared_redis import SharedRedis, redis_of_results
from worker.settings import Settings
from worker.settings.model import NoBroker
from worker.storage.errors import StorageError
from zot_artifact_client import ArtifactClient
from zot_artifact_client.broker_urls import parse_url
from zot_artifact_client.connection import CONNECT_TIMEOUT, RETRY_POLICY, SOCKET_TIMEOUT, broker_errors
from zot_artifact_client.contract import VERIFY, TaskSpec, VerifyRequest
from zot_artifact_client.job_ids import choose_id
from zot_artifact_client.outgoing_messages import Outgoing

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_SERVICE = "gateway"
_READS = 12
"""Requests to catalogue and broker at a time."""
_NOTED = 10_000


class Services:
    """The catalogue, the stores and the broker of one process. Nothing in it outlives a request."""

    def __init__(self, settings: Settings) -> None:
        """Open the catalogue.

        Raises:
            SettingsError, CatalogueError: it cannot be opened.
        """
        self.settings = settings
        self.context = Context.open(settings, SharedRedis(self._shared_redis))
        self.avoided = AvoidedStores()
        self.staging = Staging(settings)
        self._reads = anyio.CapacityLimiter(_READS)
        self._fetches = anyio.CapacityLimiter(settings.gateway.downloads)
        self._slots = anyio.CapacityLimiter(settings.gateway.downloads)
        self._lock = threading.Lock()
        self._client: ArtifactClient | None = None
        self._outbox: Outbox | None = None
        self._noted: set[tuple[int, str, str]] = set()

    async def read(self, function: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Call a function that asks the catalogue or the broker, in a thread."""
        return await anyio.to_thread.run_sync(function, *arguments, limiter=self._reads)

    async def fetch(self, function: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Call a function that reads from or writes to a disk or a store, in a thread."""
        return await anyio.to_thread.run_sync(function, *arguments, limiter=self._fetches)

    async def take_slot(self, within: float) -> object:
        """Take one of the slots of downloads and return what `free_slot` frees.

        Raises:
            Problem: all are taken for so many seconds.
        """
        holder = object()
        try:
            with anyio.fail_after(within):
                await self._slots.acquire_on_behalf_of(holder)
        except TimeoutError:
            most = self.settings.gateway.downloads
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Busy",
                f"{most} downloads are under way, which is the limit: try again soon, or raise gateway.downloads",
                headers={"Retry-After": "2"},
            ) from None
        return holder

    def free_slot(self, slot: object, close: Callable[[], object] | None = None) -> None:
        """Free a slot, once `close` has returned in a thread: it waits for what is being read."""
        if close is None:
            self._slots.release_on_behalf_of(slot)
            return
        loop = asyncio.get_running_loop()

        def close_and_free() -> None:
            try:
                close()
            except Exception:
                logger.exception("a download was not closed")
            finally:
                with suppress(RuntimeError):  # the loop has ended, and the gateway with it
                    loop.call_soon_threadsafe(self._slots.release_on_behalf_of, slot)

        # No task: one that begins while the loop ends would leave a thread behind that the process waits for.
        threading.Thread(target=close_and_free, name="close-download", daemon=True).start()

    def id_of(self, spec: TaskSpec[Any, Any], idempotency_key: str) -> str:
        """Return the id that the client gives the job with this key."""
        return choose_id(spec, idempotency_key=idempotency_key, service=_SERVICE)

    @property
    def client(self) -> ArtifactClient:
        """Return the client of the broker. Raise NoBroker."""
        with self._lock:
            if self._client is None:
                self._client = ArtifactClient(self.settings.broker_url, self.settings.results_url, service=_SERVICE)
            return self._client

    @property
    def outbox(self) -> Outbox:
        """Return the outbox, for the jobs that no worker has taken yet. Raise NoBroker."""
        with self._lock:
            if self._outbox is None:
                broker = parse_url(self.settings.broker_url)
                app = Celery("zot-artifacts-gateway", set_as_current=False)
                timeouts = {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": SOCKET_TIMEOUT}
                options = {**timeouts, **RETRY_POLICY} if broker.is_redis else {}
                app.conf.update(
                    **broker.broker_settings | {"broker_transport_options": {**options, **broker.transport_options}},
                    broker_connection_timeout=CONNECT_TIMEOUT,
                )
                self._outbox = Outbox(app)
            return self._outbox

    def _shared_redis(self) -> "redis.Redis | None":
        """Return the Redis in which all workers count what they ask of each store; None if there is none."""
        try:
            return redis_of_results(self.settings.results_url)
        except NoBroker:
            return None

    def waiting_job(self, job_id: str) -> Outgoing | None:
        """Return a job that no worker has taken yet, if the outbox has its request.

        Raises:
            NoBroker, BrokerUnavailable: the broker cannot be asked.
        """
        outbox = self.outbox
        with broker_errors("broker", self.settings.broker_url):
            return outbox.find(job_id)

    def verify_later(self, artifact: Artifact, store: str, error: StorageError) -> None:
        """Have a worker verify a copy that a download found bad, once an hour at most; its verdict is what counts."""
        hour = clock.now().strftime("%Y-%m-%dT%H")
        with self._lock:
            noted = (artifact.id, store, hour)
            if noted in self._noted:
                return
            if len(self._noted) >= _NOTED:
                self._noted.clear()
            self._noted.add(noted)
        logger.warning("%s; reading from the next copy", error.message)
        try:
            current = self.context.catalogue.artifacts.current(artifact.bucket, artifact.key)
            if current is None or current.id != artifact.id:
                return  # it was replaced or deleted meanwhile
            request = VerifyRequest(bucket=artifact.bucket, key=artifact.key, stores=(store,), version=artifact.version)
            self.client.submit(VERIFY, request, idempotency_key=f"bad:{artifact.id}:{store}:{hour}")
        except Exception as failed:  # noqa: BLE001 - the download goes on, and the verify sweep finds the copy later
            logger.warning("%s: %s: its verification was not sent: %s", store, artifact.path, failed)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
        self.context.close()
