"""The ACL for services, on a real Valkey: the client does its work with it, and everything else is refused."""

import asyncio
import hashlib
import json
from collections.abc import Iterator

import pytest
import redis

from tests.servers import Valkey
from tests.servers.process import REPOSITORY
from tests.waiting import WITHIN
from zot_artifact_client import (
    ArtifactClient,
    AsyncArtifactClient,
    BrokerUnavailable,
    JobState,
    VerifyResult,
    WaitTimeout,
)
from zot_artifact_client.cancellation import CANCEL_REQUESTS
from zot_artifact_client.contract import CANCEL_KEY, VERIFY

ACL = REPOSITORY / "deploy" / "valkey" / "users.acl"
RESULT = {"bucket": "b", "key": "k", "version": 1, "size": 1, "sha256": "0" * 64, "copies": []}


class GuardedValkey(Valkey):
    """A Valkey with the users of the ACL file, their passwords `broker` and `service`."""

    def command(self):
        lines = [line for line in ACL.read_text().splitlines() if not line.startswith("#")]
        text = "\n".join(lines) + "\n"
        for name in ("broker", "service"):
            text = text.replace(f"@{name.upper()}_SHA256@", hashlib.sha256(name.encode()).hexdigest())
        (self.directory / "users.acl").write_text(text)
        return (*super().command(), "--aclfile", str(self.directory / "users.acl"))

    def probe(self) -> None:
        try:
            with redis.Redis.from_url(self.as_user("default", "broker"), socket_timeout=1) as client:
                client.ping()
        except redis.ConnectionError as error:
            raise OSError(str(error)) from error

    def as_user(self, user: str, password: str) -> str:
        return f"redis://{user}:{password}@127.0.0.1:{self.port}/0"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedValkey]:
    server = GuardedValkey(tmp_path_factory.mktemp("guarded"))
    with server:
        yield server


@pytest.fixture
def service(guarded: GuardedValkey) -> str:
    return guarded.as_user("service", "service")


@pytest.fixture
def owner(guarded: GuardedValkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(guarded.as_user("default", "broker")) as client:
        client.flushall()
        yield client


def test_a_service_enqueues_waits_and_cancels(service: str, owner: redis.Redis) -> None:
    """Each method of the client works with the rights of the ACL, and leaves what a worker acts on."""
    with ArtifactClient(service) as client:
        job = client.verify("b", "k", idempotency_key="once")
        assert client.verify("b", "k", idempotency_key="once").id == job.id
        assert owner.llen(VERIFY.queue.value) == 2
        assert job.state is JobState.QUEUED
        job.cancel()
        assert owner.exists(CANCEL_KEY.format(job=job.id))
        assert owner.zcard(CANCEL_REQUESTS) == 1
        meta = {"status": "SUCCESS", "result": RESULT, "task_id": job.id, "name": VERIFY.name, "traceback": None}
        owner.set(f"celery-task-meta-{job.id}", json.dumps({**meta, "children": []}))
        assert isinstance(job.wait(WITHIN), VerifyResult)


def test_the_asynchronous_client_needs_no_other_rights(service: str, owner: redis.Redis) -> None:
    """An asynchronous service enqueues, waits, asks and cancels with the same rights."""

    async def scene() -> None:
        async with AsyncArtifactClient(service) as client:
            job = await client.verify("b", "k", idempotency_key="once")
            assert (await client.verify("b", "k", idempotency_key="once")).id == job.id
            assert await job.cancel()
            with pytest.raises(WaitTimeout):
                await client.show("b", "k", timeout=0.1)
            meta = {"status": "SUCCESS", "result": RESULT, "task_id": job.id, "name": VERIFY.name, "traceback": None}
            owner.set(f"celery-task-meta-{job.id}", json.dumps({**meta, "children": []}))
            assert isinstance(await job.wait(WITHIN), VerifyResult)

    asyncio.run(scene())


@pytest.mark.parametrize(
    "command",
    [
        ("LRANGE", "transfer", "0", "-1"),
        ("RPOP", "transfer"),
        ("DEL", "transfer"),
        ("LPUSH", "sweep", "x"),
        ("LPUSH", "other", "x"),
        ("HGETALL", "zot-artifacts:outbox"),
        ("HDEL", "zot-artifacts:outbox", "x"),
        ("HSET", "zot-artifacts:outbox", "x", "y"),
        ("SADD", "zot-artifacts:passed:x", "transfer"),
        ("DEL", "zot-artifacts:waits:x"),
        ("SET", "celery-task-meta-x", "{}"),
        ("SETEX", "celery-task-meta-x", "9", "{}"),
        ("PSETEX", "celery-task-meta-x", "9", "{}"),
        ("MSET", "zot-artifacts:idempotency:x", "y", "celery-task-meta-x", "{}"),
        ("GETSET", "celery-task-meta-x", "{}"),
        ("GETEX", "celery-task-meta-x", "EX", "1"),
        ("APPEND", "celery-task-meta-x", "{}"),
        ("EXPIRE", "celery-task-meta-x", "1"),
        ("COPY", "zot-artifacts:idempotency:x", "celery-task-meta-x"),
        ("RENAME", "zot-artifacts:idempotency:x", "celery-task-meta-x"),
        ("RESTORE", "celery-task-meta-x", "0", "x"),
        ("SPUBLISH", "celery-task-meta-x", "{}"),
        ("PUBLISH", "/0.celery.pidbox", "shutdown"),
        ("PUBLISH", "celery-task-meta-x", "{}"),
        ("SUBSCRIBE", "/0.celery.pidbox"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("INFO",),
        ("SHUTDOWN",),
        ("EVAL", "return 1", "0"),
        ("GET", "zot-artifacts:breaker:dr:open"),
    ],
    ids=" ".join,
)
def test_a_service_can_do_nothing_else(command: tuple[str, ...], service: str, owner: redis.Redis) -> None:
    """Reading, taking or deleting messages, changing results and controlling workers or the broker is refused."""
    with redis.Redis.from_url(service) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


def test_a_sweep_is_refused_in_words(service: str) -> None:
    """A method that needs more than the rights of a service says so, and shows nothing of the message."""
    with (
        ArtifactClient(service) as client,
        pytest.raises(BrokerUnavailable, match="refuses this: its ACL does not") as told,
    ):
        client.sweep_verify()
    assert "LPUSH" not in str(told.value)


ALLOWED: dict[str, set[str]] = {
    "transfer": {"lpush"},
    "interactive": {"lpush"},
    "zot-artifacts:outbox": {"hexists", "hsetnx"},
    "zot-artifacts:outbox:transfer": {"zadd"},
    "zot-artifacts:idempotency:x": {"expire", "get", "set"},
    "celery-task-meta-x": {"get", "mget", "subscribe"},
    "zot-artifacts:cancel:x": {"set"},
    "zot-artifacts:cancelling": {"zadd", "zremrangebyrank"},
    **{key: set() for key in ("sweep", "unacked", "_kombu.binding.transfer", "zot-artifacts:breaker:dr:open", "other")},
}
"""What the ACL allows a service to do with a key or a channel of that name."""
EVERYWHERE = {
    *("auth", "client|id", "client|setinfo", "client|setname", "discard", "exec", "hello", "multi", "ping", "quit"),
    *("reset", "select", "unsubscribe", "unwatch"),
}  # fmt: skip


def test_no_command_of_the_server_does_more(owner: redis.Redis) -> None:
    """Of all commands of the server the ACL allows a service those that it needs, each for the keys that it needs."""
    owner.response_callbacks.pop("COMMAND")
    arities = {}
    for row in owner.execute_command("COMMAND"):
        for name, arity, *_ in (row, *row[9]):
            arities[tuple(name.decode().split("|"))] = abs(arity)
    assert len(arities) > 300
    # The server answers only to as many arguments as the command can have.
    calls = [
        (key, command, (*command, *[key] * (arity - len(command) + more)))
        for key in ALLOWED
        for command, arity in arities.items()
        for more in range(3)
    ]
    with owner.pipeline(transaction=False) as pipeline:
        for _, _, call in calls:
            pipeline.execute_command("ACL", "DRYRUN", "service", *call)
        answers = pipeline.execute(raise_on_error=False)
    found: dict[str, set[str]] = {key: set() for key in ALLOWED}
    for (key, command, _), answer in zip(calls, answers, strict=True):
        if answer == b"OK":
            found[key].add("|".join(command))
    assert found == {key: EVERYWHERE | commands for key, commands in ALLOWED.items()}
