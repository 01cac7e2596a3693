"""Requests under one id or key, sent over lines that break and at the same moment, without a worker."""

import asyncio
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from select import select
from socket import create_connection
from typing import Any

import pytest
import redis

from tests.servers import Valkey
from zot_artifact_client import ArtifactClient, AsyncArtifactClient, IdempotencyMismatch, InvalidRequest
from zot_artifact_client.contract import VERIFY, VerifyRequest
from zot_artifact_client.idempotency_conflicts import DIGEST_KEY
from zot_artifact_client.job_ids import choose_id

QUEUE = VERIFY.queue.value
ONE, TWO, THREE = (VerifyRequest(bucket="b", key=key) for key in ("one", "two", "three"))
SendList = Callable[[str, Iterable[Any], str], list[str]]


class LosingProxy(socketserver.ThreadingTCPServer):
    """Pass transactions on to a Redis, and lose the answer to one of them: the connection breaks in its place."""

    daemon_threads = True

    def __init__(self, upstream: int, lost: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.lost = lost
        """How many transactions are answered before the one whose answer is lost."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.server_address[1]}/3"


class _Handler(socketserver.BaseRequestHandler):
    server: LosingProxy

    def handle(self) -> None:
        with create_connection(("127.0.0.1", self.server.upstream)) as upstream:
            while True:
                for ready in select([self.request, upstream], [], [])[0]:
                    data = ready.recv(1 << 20)
                    if not data:
                        return
                    (upstream if ready is self.request else self.request).sendall(data)
                    if ready is self.request and b"EXEC" in data:
                        self.server.lost -= 1
                        if self.server.lost == -1:
                            upstream.recv(1)  # so it is done
                            return


@pytest.fixture
def server(valkey: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.database(3)) as client:
        client.flushdb()
        yield client
        client.flushdb()


@pytest.fixture
def losing(valkey: Valkey) -> Iterator[Callable[[int], LosingProxy]]:
    made: list[tuple[LosingProxy, threading.Thread]] = []

    def make(lost: int) -> LosingProxy:
        proxy = LosingProxy(valkey.port, lost)
        made.append((proxy, threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})))
        made[-1][1].start()
        return proxy

    yield make
    for proxy, thread in made:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


def _send(url: str, requests: Iterable[Any], key: str) -> list[str]:
    with ArtifactClient(url) as client:
        return [job.id for job in client.submit_many(requests, idempotency_key=key)]


def _send_without_blocking(url: str, requests: Iterable[Any], key: str) -> list[str]:
    async def send() -> list[str]:
        async with AsyncArtifactClient(url) as client:
            return [job.id for job in await client.submit_many(requests, idempotency_key=key)]

    return asyncio.run(send())


@pytest.fixture(params=[_send, _send_without_blocking], ids=["blocking", "asynchronous"])
def send(request: pytest.FixtureRequest) -> SendList:
    sends: SendList = request.param
    return sends


def test_a_list_is_read_and_compared_before_its_first_page_is_sent(
    send: SendList, valkey: Valkey, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a list whose last request is another one than before, or is none, nothing is sent."""
    monkeypatch.setattr("zot_artifact_client.build_requests.PIPELINE_SIZE", 1)
    send(valkey.database(3), [ONE, TWO], "key")
    with pytest.raises(IdempotencyMismatch):
        send(valkey.database(3), [ONE, THREE], "key")
    with pytest.raises(InvalidRequest):
        send(valkey.database(3), [ONE, object()], "other")
    assert server.llen(QUEUE) == 2
    assert len(send(valkey.database(3), [ONE, TWO, THREE], "key")) == 3


@pytest.mark.parametrize("lost", range(3))
def test_a_list_that_is_not_sent_takes_no_key_over_a_line_that_breaks(
    send: SendList, valkey: Valkey, server: redis.Redis, losing: Callable[[int], LosingProxy], lost: int
) -> None:
    """The answer to any of its transactions may be lost: the keys of its new requests stay free."""
    send(valkey.database(3), [ONE], "key")
    with pytest.raises(IdempotencyMismatch):
        send(losing(lost).url, [TWO, THREE], "key")
    assert server.llen(QUEUE) == 1
    assert len(send(valkey.database(3), [ONE, ONE], "key")) == 2


@pytest.mark.parametrize("lost", range(4))
def test_a_list_is_sent_over_a_line_that_breaks(
    send: SendList, server: redis.Redis, losing: Callable[[int], LosingProxy], lost: int
) -> None:
    """The client sends again what was not answered, and takes what is there already for its own."""
    first = send(losing(lost).url, [ONE, TWO], "key")
    assert send(losing(lost).url, [ONE, TWO], "key") == first
    assert len(set(first)) == server.hlen("zot-artifacts:outbox") == 2


def test_of_two_requests_at_the_same_moment_one_is_the_job(valkey: Valkey, server: redis.Redis) -> None:
    """The other one is told so and is not sent, whichever it is; equal ones are one job."""
    with ArtifactClient(valkey.database(3)) as client, ThreadPoolExecutor(2) as pool:
        for key in map(str, range(50)):
            both = threading.Barrier(2)

            def verify(name: str, key: str = key, both: threading.Barrier = both) -> str | None:
                both.wait()
                try:
                    return client.verify("b", name, idempotency_key=key).id
                except IdempotencyMismatch:
                    return None

            names = ["one", "two"] if int(key) % 2 else ["one", "one"]
            sent = list(pool.map(verify, names))
            assert set(sent) - {None} == {choose_id(VERIFY, idempotency_key=key)}
            assert sent.count(None) == int(key) % 2
    assert server.llen(QUEUE) == 75


@pytest.mark.parametrize("is_new", [True, False])
def test_an_id_that_was_just_made_is_not_compared(valkey: Valkey, server: redis.Redis, is_new: bool) -> None:
    """No other request can have it, also where a program makes it before it sends; the caller's own id is compared."""
    id_ = choose_id(VERIFY) if is_new else "mine"
    with ArtifactClient(valkey.database(3)) as client:
        job = client.submit(VERIFY, ONE, job_id=id_)
        [other] = client.submit_many([ONE])
        assert type(job.id) is type(other.id) is str
    assert job.id == id_
    assert server.exists(DIGEST_KEY.format(job=id_)) != is_new
    assert not server.exists(DIGEST_KEY.format(job=other.id))
