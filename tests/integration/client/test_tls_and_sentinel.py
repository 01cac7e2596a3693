"""Brokers behind TLS and behind a Sentinel, with a real worker and a real client."""

import asyncio
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from urllib.parse import quote

import pytest
from redis import Redis, RedisError

from tests.servers import Valkey
from tests.servers.sentinel import MASTER, Sentinel
from tests.servers.tls import Authority, TlsProxy
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker import cli
from worker.limits.shared_redis import redis_of_results
from zot_artifact_client import ArtifactClient, AsyncArtifactClient, BrokerUnavailable, JobFailed
from zot_artifact_client.broker_urls import async_redis_client, redis_client
from zot_artifact_client.contract import JobState


class WorkerBehindSentinel(Worker):
    """A worker whose URL plain Celery cannot read."""

    def probe(self) -> None:
        if " ready." not in self.log:
            raise ConnectionError("it has not begun yet")


def assert_a_job_ends(url: str) -> None:
    """Expect that a job which is sent comes to its end, with both clients."""
    with ArtifactClient(url) as client, pytest.raises(JobFailed, match="not in the catalogue"):
        client.verify("releases", "absent.tgz").wait(WITHIN)
    asyncio.run(assert_a_job_ends_asynchronously(url))


async def assert_a_job_ends_asynchronously(url: str) -> None:
    async with AsyncArtifactClient(url) as client:
        job = await client.verify("releases", "absent.tgz")
        with pytest.raises(JobFailed, match="not in the catalogue"):
            await job.wait(WITHIN)


async def assert_refused(url: str, why: str) -> None:
    async with AsyncArtifactClient(url) as client:
        with pytest.raises(BrokerUnavailable, match=why):
            await client.verify("releases", "absent.tgz")


def assert_closed_clients_leave_no_connection(url: str, port: int) -> None:
    """Expect that clients which are closed, and not collected yet, have no connection to the Sentinel."""

    async def ask(client: AsyncArtifactClient) -> None:
        async with client:
            assert await client.job("absent").state() is JobState.UNKNOWN

    with Redis(port=port) as watch:
        before = {each["id"] for each in watch.client_list()}  # of others, which may end meanwhile
        plain, client, asynchronous = redis_client(url), ArtifactClient(url), AsyncArtifactClient(url)
        with plain, client:
            assert plain.ping()
            assert client.job("absent").state is JobState.UNKNOWN
        asyncio.run(ask(asynchronous))
        until(lambda: {each["id"] for each in watch.client_list()} <= before)


def assert_threads_connect(url: str) -> None:
    """Expect that threads and tasks which share a client, and connect at one time, all reach the master."""
    many = 12
    with redis_client(url) as client, ThreadPoolExecutor(many) as threads:
        begin = Barrier(many)
        assert all(threads.map(lambda _: begin.wait() < many and client.ping(), range(many)))

    async def ping() -> list[bool]:
        async with async_redis_client(url) as client:
            return await asyncio.gather(*(client.ping() for _ in range(many)))

    assert all(asyncio.run(ping()))


def assert_pauses(home: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect that the commands which use the Redis of the results can: they read its URL themselves."""
    monkeypatch.setenv("ZOT_HOME", str(home))
    monkeypatch.setenv("ZOT_BROKER", url)
    for command in ("pause", "resume"):
        assert cli.run([command, "queue", "transfer"]) == 0
    client = redis_of_results(url)
    assert client is not None
    assert client.ping()


def test_a_broker_behind_tls_is_verified(valkey: Valkey, tmp_path: Path, monkeypatch, capsys):
    """With the right authority jobs run; without it, with another one or without TLS, all refuse in one line."""
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    with TlsProxy(valkey.port, ours.context()) as tls:
        bare = f"rediss://127.0.0.1:{tls.port}/0"
        good = f"{bare}?ssl_ca_certs={ours.path}"
        with Worker(tmp_path / "worker", good, concurrency=1):
            assert_a_job_ends(good)
            assert_a_job_ends(f"{bare}?ssl_cert_reqs=none")
            assert_pauses(tmp_path / "worker" / "home", good, monkeypatch)
        untrusted = "authority of its certificate is not trusted"
        plain = (bare.replace("rediss", "redis"), "it expects TLS: the scheme of its URL is rediss://")
        for wrong, why in ((bare, untrusted), (f"{bare}?ssl_ca_certs={other.path}", untrusted), plain):
            with ArtifactClient(wrong) as client, pytest.raises(BrokerUnavailable) as refused:
                client.verify("releases", "absent.tgz")
            assert why in str(refused.value)
            assert "\n" not in str(refused.value)
            asyncio.run(assert_refused(wrong, why))
            monkeypatch.setenv("ZOT_HOME", str(tmp_path / "worker" / "home"))
            monkeypatch.setenv("ZOT_BROKER", wrong)
            assert cli.run(["jobs", "--refused"]) == 3
            assert capsys.readouterr().err.count("\n") == 1


class ValkeyWithSocket(Valkey):
    """A Valkey with a password that also listens on a Unix socket, whose name means something else in a URL."""

    password = "p@w/#%;"

    @property
    def socket(self) -> Path:
        return self.directory / "a b%41é.sock"

    def command(self) -> Sequence[str]:
        return (*super().command(), "--unixsocket", str(self.socket), "--requirepass", self.password)

    def probe(self) -> None:
        try:
            with Redis(unix_socket_path=str(self.socket), password=self.password) as client:
                client.ping()
        except RedisError as error:
            raise ConnectionError(str(error)) from error


@pytest.mark.parametrize(
    "form",
    [
        "redis+socket://:{password}@{path}?virtual_host=2",
        "unix://{path}?password={password}&db=2",
        "REDIS://:{password}@127.0.0.1:{port}/2?socket_timeout=9&client_name=zot",
    ],
)
def test_every_spelling_of_a_broker_runs_jobs(form: str, tmp_path: Path, monkeypatch):
    """Worker, clients and commands read the socket, the password and the time limits of a URL alike."""
    with ValkeyWithSocket(tmp_path / "valkey") as valkey:
        secret = quote(valkey.password, safe="")
        url = form.format(path=quote(str(valkey.socket)), password=secret, port=valkey.port)
        with WorkerBehindSentinel(tmp_path / "worker", url, concurrency=1) as worker:
            assert_a_job_ends(url)
            assert_pauses(worker.home, url, monkeypatch)
            assert cli.run(["health", "worker"]) == 0
            assert cli.run(["jobs", "--rejected"]) == 0
            with Redis(port=valkey.port, password=valkey.password, db=2) as client:
                assert client.keys("celery-task-meta-*")
            assert not {secret, valkey.password} & set(re.split(r"[\s:@?&=]", worker.log))


def test_a_broker_behind_a_sentinel_is_found(valkey: Valkey, tmp_path: Path, monkeypatch):
    """Worker and client ask the Sentinel for the master, for messages and results alike, and leave no connection."""
    with Sentinel(tmp_path / "sentinel", valkey.port) as sentinel:
        url = f"sentinel://127.0.0.1:{sentinel.port}/0?master_name={MASTER}"
        with WorkerBehindSentinel(tmp_path / "worker", url, concurrency=1):
            assert_a_job_ends(url)
            assert_pauses(tmp_path / "worker" / "home", url, monkeypatch)
        assert_threads_connect(url)
        assert_closed_clients_leave_no_connection(url, sentinel.port)
