"""The asynchronous client against a real Valkey and real workers."""

import asyncio
import gc
import json
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.servers import Valkey
from tests.servers.process import free_port, frozen
from tests.waiting import WITHIN, until
from zot_artifact_client import (
    AsyncArtifactClient,
    AsyncJob,
    BrokerUnavailable,
    ClientError,
    InvalidUrl,
    JobCancelled,
    JobState,
    Progress,
    WaitTimeout,
)
from zot_artifact_client.async_redis import MAX_CONNECTIONS
from zot_artifact_client.contract import PROGRESS_STATE, VERIFY, VerifyRequest

WAITS = 200
RESULT = {"bucket": "b", "key": "k", "version": 1, "size": 1, "sha256": "0" * 64, "copies": []}

CANCELLED = {"exc_type": "TaskRevokedError", "exc_message": ["cancelled"], "exc_module": "celery.exceptions"}


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Valkey]:
    """Return a Valkey that a test may kill."""
    with Valkey(tmp_path / "valkey") as server:
        yield server


def store(url: str, jobs: list[str], state: str = "SUCCESS", result: object = None) -> None:
    """Store a state of some jobs as a worker does."""
    meta = {"status": state, "result": RESULT if result is None else result, "traceback": None, "children": []}
    with redis.Redis.from_url(url) as server:
        for job in jobs:
            server.set(f"celery-task-meta-{job}", json.dumps({**meta, "task_id": job}))


async def until_read(server: redis.Redis, times: int = 2) -> None:
    """Wait until the waits that a client has begun have asked a server so many times for the states of their jobs."""

    def reads() -> int:
        return int(server.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"])

    before = reads()
    await asyncio.to_thread(until, lambda: reads() >= before + times)


async def ticking(over: asyncio.Event) -> int:
    """Count the turns of the event loop."""
    turns = 0
    while not over.is_set():
        await asyncio.sleep(0.01)
        turns += 1
    return turns


def test_two_hundred_waits_share_few_connections(unserved: str) -> None:
    """200 waits of one process take a few connections, hold up no other coroutine, and all end with their result."""

    async def scene(server: redis.Redis) -> None:
        others = {each["id"] for each in server.client_list()}
        async with AsyncArtifactClient(unserved) as client:
            jobs = await client.submit_many([VerifyRequest(bucket="b", key=f"{n}") for n in range(WAITS)])
            waits = [asyncio.create_task(job.wait(WITHIN)) for job in jobs]
            over = asyncio.Event()
            turns = asyncio.create_task(ticking(over))
            await until_read(server, 15)
            ours = [each for each in server.client_list() if each["id"] not in others]
            assert 0 < len(ours) <= MAX_CONNECTIONS
            assert not any(wait.done() for wait in waits)
            await asyncio.to_thread(store, unserved, [job.id for job in jobs])
            results = await asyncio.gather(*waits)
            over.set()
            assert len(results) == WAITS
            assert await turns > 10

    with redis.Redis.from_url(unserved) as server:
        asyncio.run(scene(server))


def test_a_cancelled_wait_leaves_its_job_and_the_other_waits(unserved: str) -> None:
    """A wait that is cancelled, alone or by a timeout of asyncio, ends at once; other waits for the job go on."""

    async def scene(server: redis.Redis) -> None:
        async with AsyncArtifactClient(unserved) as client:
            job = await client.verify("b", "k")
            first, other = (asyncio.create_task(job.wait()) for _ in "ab")
            await until_read(server)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await job.wait()
            assert await job.state() is JobState.QUEUED
            await asyncio.to_thread(store, unserved, [job.id])
            assert (await other).key == "k"

    with redis.Redis.from_url(unserved) as server:
        asyncio.run(scene(server))


def test_a_wait_that_is_cancelled_in_a_read_leaves_the_others_of_that_read(
    unserved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two waits whose states are read in one round trip, one can be cancelled meanwhile; the other one ends."""
    store(unserved, ["first", "other"])

    async def scene() -> None:
        async with AsyncArtifactClient(unserved) as client:
            asked, answered, run = asyncio.Event(), asyncio.Event(), client._jobs._backend.run

            async def slow(command: Callable[[Any], Awaitable[Any]]) -> Any:
                asked.set()
                await answered.wait()
                return await run(command)

            monkeypatch.setattr(client._jobs._backend, "run", slow)
            first, other = (asyncio.create_task(client.verify_job(name).wait(WITHIN)) for name in ("first", "other"))
            await asked.wait()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            answered.set()
            assert (await other).key == "k"

    asyncio.run(scene())


def test_a_wait_ends_in_time_and_can_be_repeated(unserved: str) -> None:
    """A job that takes longer than the caller waits is WaitTimeout, for one job, for many, and for a query."""

    async def scene() -> None:
        async with AsyncArtifactClient(unserved) as client:
            jobs = await client.submit_many([VerifyRequest(bucket="b", key="k")])
            waits: list[Callable[[], Awaitable[Any]]] = [
                lambda: jobs[0].wait(0.2),
                lambda: jobs.wait(0.2),
                lambda: client.show("b", "k", timeout=0.2),
                lambda: client.status("unknown-job", timeout=0.2),
            ]
            for wait in waits:
                started = time.monotonic()
                with pytest.raises(WaitTimeout):
                    await wait()
                assert time.monotonic() - started < 60
            await asyncio.to_thread(store, unserved, [jobs[0].id])
            assert [result.key for result in await jobs.wait(WITHIN)] == ["k"]

    asyncio.run(scene())


def test_progress_is_awaited(unserved: str) -> None:
    """A coroutine that is given the progress is awaited, and what it raises ends the wait and not the job."""
    seen: list[Progress] = []

    async def scene() -> None:
        async with AsyncArtifactClient(unserved) as client:
            job = await client.verify("b", "k")

            told = asyncio.Semaphore(0)

            async def tell(progress: Progress) -> None:
                await asyncio.sleep(0)
                seen.append(progress)
                told.release()
                if progress.bytes_done == 2:
                    raise TimeoutError("the caller's own")

            wait = asyncio.create_task(job.wait(WITHIN, on_progress=tell))
            for done in (1, 2):
                await asyncio.to_thread(store, unserved, [job.id], PROGRESS_STATE, {"bytes_done": done})
                await told.acquire()
            with pytest.raises(TimeoutError, match="the caller's own"):
                await wait
            assert (await job.progress()) == Progress(bytes_done=2)
            assert (await job.state(), await job.result()) == (JobState.RUNNING, None)

    asyncio.run(scene())
    assert [progress.bytes_done for progress in seen] == [1, 2]


def test_a_job_is_cancelled(valkey: Valkey, unserved: str) -> None:
    """The request to cancel is what a worker finds; a wait for a job that ends so raises JobCancelled."""

    async def scene() -> None:
        async with AsyncArtifactClient(unserved) as client:
            job = await client.verify("b", "k")
            assert await job.cancel() is True
            with redis.Redis.from_url(unserved) as server:
                assert server.zscore("zot-artifacts:cancelling", job.id) is not None
                assert server.exists(f"zot-artifacts:cancel:{job.id}")
            wait = asyncio.create_task(job.wait(WITHIN))
            await asyncio.to_thread(store, unserved, [job.id], "REVOKED", CANCELLED)
            with pytest.raises(JobCancelled):
                await wait
            assert await job.cancel() is False

    asyncio.run(scene())


@pytest.mark.parametrize("silent", [False, True])
def test_no_broker_is_told_in_seconds(silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that refuses, or accepts and never answers, is BrokerUnavailable, without a credential."""
    monkeypatch.setattr("zot_artifact_client.async_redis.SOCKET_TIMEOUT", 0.5)

    async def scene(port: int) -> None:
        async with AsyncArtifactClient(f"redis://service:hunter2@127.0.0.1:{port}/0") as client:
            job = client.job("some-job")
            calls = (client.verify("b", "k"), job.wait(), job.cancel(), client.show("b", "k"))
            for caught in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(caught, BrokerUnavailable)
                assert str(port) in str(caught)
                assert "hunter2" not in str(caught)

    if not silent:
        asyncio.run(scene(free_port()))
        return
    with socket.create_server(("127.0.0.1", 0)) as server:
        asyncio.run(scene(server.getsockname()[1]))


def test_a_backend_that_goes_away_ends_the_waits_and_they_work_again(
    doomed: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waits without a timeout end when the backend is killed or falls silent, and the client works when it is back."""
    monkeypatch.setattr("zot_artifact_client.async_redis.SOCKET_TIMEOUT", 0.5)

    async def lost(job: AsyncJob[Any]) -> None:
        with pytest.raises(BrokerUnavailable, match=str(doomed.port)):
            await job.wait()

    async def scene(server: redis.Redis) -> None:
        async with AsyncArtifactClient(doomed.url) as client:
            job = await client.verify("b", "k")
            waits = asyncio.gather(*(lost(job) for _ in range(3)))
            await until_read(server)
            with frozen(doomed.pid):
                await waits
            waits = asyncio.gather(lost(job))
            await until_read(server)
            doomed.kill()
            await waits
            doomed.restart()
            wait = asyncio.create_task(job.wait(WITHIN))
            await asyncio.to_thread(store, doomed.url, [job.id])
            assert (await wait).key == "k"

    with redis.Redis.from_url(doomed.url) as server:
        asyncio.run(scene(server))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # connections of a loop that was left without `close`
def test_each_event_loop_and_process_has_connections_of_its_own(unserved: str) -> None:
    """A client of a module works in one event loop after another, and in a forked child and its parent at once."""
    client = AsyncArtifactClient(unserved)
    store(unserved, ["ended"])

    async def works(client: AsyncArtifactClient) -> bool:
        sent = await client.verify("b", "k")
        return await sent.state() is JobState.QUEUED and (await client.verify_job("ended").wait(WITHIN)).key == "k"

    assert asyncio.run(works(client))
    assert asyncio.run(works(client))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if asyncio.run(works(client)) else 2
        finally:
            os._exit(status)
    assert asyncio.run(works(client))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    del client
    gc.collect()


def test_event_loops_of_several_threads_share_a_client(unserved: str) -> None:
    """Reads in two event loops at once all end, over few connections of each loop, and each loop closes its own."""
    client = AsyncArtifactClient(unserved)
    store(unserved, ["ended"])
    with redis.Redis.from_url(unserved) as server:
        before = server.info("stats")["total_connections_received"]
        ready = threading.Barrier(2, timeout=WITHIN)

        async def reads() -> None:
            ready.wait()
            for _ in range(200):
                assert await asyncio.wait_for(client.verify_job("ended").state(), WITHIN) is JobState.SUCCEEDED
            ready.wait()
            await client.close()

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(asyncio.run, reads()) for _ in range(2)]:
                done.result()
        assert server.info("stats")["total_connections_received"] - before <= 2 * MAX_CONNECTIONS


def test_what_cannot_be_used_is_told_at_once(unserved: str) -> None:
    """A URL that is no Redis and a client that was closed are errors that name the way out."""
    with pytest.raises(InvalidUrl, match="needs Redis or Valkey"):
        AsyncArtifactClient("amqp://guest:hunter2@localhost//")
    with pytest.raises(InvalidUrl, match="result_url"):
        AsyncArtifactClient(unserved, "rpc://")

    async def scene() -> None:
        client = AsyncArtifactClient(unserved)
        await client.close()
        with pytest.raises(ClientError, match="is closed"):
            await client.submit(VERIFY, VerifyRequest(bucket="b", key="k"))

    asyncio.run(scene())
