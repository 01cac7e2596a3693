"""Send jobs and queries over the gateway, for programs that do not reach the broker."""

import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from zot_artifact_client.build_requests import SentJob, payload_of
from zot_artifact_client.connection import PerProcess
from zot_artifact_client.contract import (
    QUERY_STATUS,
    SWEEP_VERIFY,
    JobState,
    Message,
    Progress,
    RequestT,
    ResultT,
    StatusRequest,
    StatusResult,
    TaskSpec,
)
from zot_artifact_client.errors import (
    BrokerUnavailable,
    ClientError,
    GatewayUnavailable,
    InvalidRequest,
    UnknownJob,
)
from zot_artifact_client.gateway import Gateway
from zot_artifact_client.job import OnProgress, wait_timeout
from zot_artifact_client.job_ids import choose_ids, numbered_key, scoped_key
from zot_artifact_client.snapshot import Snapshot, recorded_snapshot, unknown_job

_SHORTEST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
"""Seconds between two reads of the state of a job that is waited for: a tenth of the age of the wait."""
_READS = 40
"""Reads in a second of all waits of a client together: the gateway serves a token 100 requests by default."""


class GatewayJobs:
    """The jobs of one token over a gateway, which chooses their ids; a key belongs to the token and the service."""

    def __init__(self, gateway: Gateway, service: str | None) -> None:
        self.at = gateway.url
        self._gateway = gateway
        self._service = service
        self.results = GatewayResults(gateway)

    def submit(
        self, spec: TaskSpec[RequestT, Any], request: RequestT, *, idempotency_key: str | None, job_id: str | None
    ) -> SentJob:
        """Send a request and return its job. The gateway compares requests: it changes them before it sends them."""
        if job_id is not None:
            raise InvalidRequest(f"{spec.kind}: the gateway chooses the ids of jobs: give idempotency_key, not job_id")
        if spec.kind == SWEEP_VERIFY.kind:
            raise InvalidRequest(f"{spec.kind}: the gateway starts no sweeps: give broker_url")
        headers: dict[str, str] = {}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = quote(scoped_key(spec, idempotency_key, self._service), safe=":/")
        sent = self._gateway.ask(
            "POST", f"/v1/jobs/{spec.kind}", payload_of(spec, request), read=StatusResult.read,
            headers=headers, again=bool(headers),
        )  # fmt: skip
        return SentJob(sent.job, spec)

    def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None) -> Iterator[SentJob]:
        """Send requests one after the other; yield the job of each."""
        for spec, request, key in requests_of(requests, idempotency_key):
            yield self.submit(spec, request, idempotency_key=key, job_id=None)

    def query(self, spec: TaskSpec[RequestT, ResultT], request: RequestT, timeout: float) -> ResultT:  # noqa: ARG002 - the gateway has a time limit of its own
        """Return the answer to a query."""
        if spec is QUERY_STATUS and isinstance(request, StatusRequest):
            return spec.result.read(self.results.status(request.job).model_dump(mode="json"))
        return self._gateway.query(spec, request)

    def close(self) -> None:
        """Do nothing: the client closes the gateway."""


class GatewayResults:
    """The states and results of jobs, as the gateway has them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._waits = 0
        self._lock = PerProcess(threading.Lock)

    def status(self, job_id: str) -> StatusResult:
        """Return what the gateway has of a job; its state is `unknown` if there is none, or the token is not for it."""
        try:
            return self._gateway.ask("GET", f"/v1/jobs/{quote(job_id, safe='')}", read=StatusResult.read)
        except UnknownJob:
            return StatusResult(job=job_id, state=JobState.UNKNOWN)

    def snapshot(self, job_id: str) -> Snapshot:
        return recorded_snapshot(self.status(job_id))

    def snapshot_for_wait(self, job_id: str, until: float = math.inf) -> Snapshot | None:
        """Return the state of a job that is waited for, None while the gateway is away for less than a minute.

        `until`: the end of the wait, by the monotonic clock; from then on it raises what is wrong.
        """
        try:
            return self.snapshot(job_id)
        except (GatewayUnavailable, BrokerUnavailable):
            if self._gateway.is_away_briefly() and time.monotonic() < until:
                return None
            raise

    def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnProgress | None) -> Snapshot:
        with self._lock.get():
            self._waits += 1
        try:
            return self._until_end(job_id, timeout, on_progress)
        finally:
            with self._lock.get():
                self._waits -= 1

    def _until_end(self, job_id: str, timeout: float | None, on_progress: OnProgress | None) -> Snapshot:
        started = time.monotonic()
        until = math.inf if timeout is None else started + timeout
        told: Progress | None = None
        while True:
            found = self.snapshot_for_wait(job_id, until)
            if found is not None:
                if found.state is JobState.UNKNOWN:
                    raise unknown_job(job_id)
                if found.state.terminal:
                    return found
                if on_progress is not None and found.progress is not None and found.progress != told:
                    told = found.progress
                    on_progress(told)
            now = time.monotonic()
            if now >= until:
                raise wait_timeout(job_id, timeout)
            time.sleep(min(pause_of(now - started, self._waits), until - now))

    def ended(self, job_ids: Sequence[str]) -> Mapping[str, Snapshot]:
        found = {id_: self.snapshot_for_wait(id_) for id_ in job_ids}
        return {id_: each for id_, each in found.items() if each is not None and each.state.terminal}

    def cancel(self, job_id: str) -> bool:
        try:
            self._gateway.ask("DELETE", f"/v1/jobs/{quote(job_id, safe='')}", read=StatusResult.read)
        except UnknownJob:
            raise unknown_job(job_id) from None
        except ClientError:
            if self.snapshot(job_id).state.terminal:
                return False
            raise
        return True


def requests_of(
    requests: Iterable[Message], idempotency_key: str | None
) -> Iterator[tuple[TaskSpec[Any, Any], Any, str | None]]:
    """Yield requests with their kind and the idempotency key that each has within a list. Raise InvalidRequest."""
    for number, (_, spec, request) in enumerate(choose_ids(requests, None)):
        yield spec, request, numbered_key(spec, idempotency_key, number)


def pause_of(age: float, waits: int) -> float:
    """Return the seconds until the next read of a wait of some age, one of this many."""
    return max(waits / _READS, min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, age / 10)))
