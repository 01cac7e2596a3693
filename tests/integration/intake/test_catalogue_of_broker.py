"""A broker belongs to one catalogue: no worker of another one takes its jobs."""

import json
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from tests.hostile_messages import envelope
from tests.servers import Valkey
from tests.servers.process import ServerFailed
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker import cli, clock
from worker.catalogue import Catalogue
from worker.embedded import supervisor
from worker.intake.catalogue_of_broker import (
    CATALOGUE,
    FILES,
    CheckOwner,
    OtherCatalogue,
    check_owner,
    check_owner_in,
    check_owner_late,
    note_broker_in,
    note_file_in,
)
from worker.limits.check_pauses import PAUSED_QUEUES
from worker.report.service_checks import owner_of_broker
from worker.settings import Settings
from zot_artifact_client import ArtifactClient

FIELDS = {"bucket": "releases", "key": "absent.tgz"}
OTHER = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    """Return a broker of this test's own, which may be lost."""
    with Valkey(tmp_path / "valkey") as started:
        yield started


@pytest.fixture
def broker(server: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


def of_another(directory: Path, url: str) -> tuple[Worker, str]:
    """Return a worker with a catalogue of its own, not started, and the id of that catalogue."""
    made = Worker(directory, url, concurrency=1, accept_broker=False)
    made.home.mkdir(parents=True, mode=0o700)
    catalogue = Catalogue(f"sqlite:///{made.home / 'catalogue.sqlite3'}")
    catalogue.close()
    return made, catalogue.identity


def said_by(worker: Worker) -> str:
    try:
        return worker.log
    except FileNotFoundError:
        return ""  # it has not begun yet


def test_a_worker_of_another_catalogue_refuses_to_start(server: Valkey, broker: redis.Redis, tmp_path: Path) -> None:
    """It names both catalogues and the way out, and changes nothing; more workers of the first catalogue start."""
    incoming = tmp_path / "in"
    incoming.mkdir()
    (incoming / "app.tgz").write_bytes(b"release")
    settings = {"sources__roots": json.dumps([str(incoming)])}
    with Worker(tmp_path / "first", server.url, accept_broker=False, **settings):
        owner = broker.get(CATALOGUE).decode()
    other, its_id = of_another(tmp_path / "other", server.url)
    with ArtifactClient(server.url) as client:
        job = client.upload(str(incoming / "app.tgz"), "releases", "app.tgz")
        broker.sadd(PAUSED_QUEUES, "sweep")
        with pytest.raises(ServerFailed):
            other.start()
        assert broker.sismember(PAUSED_QUEUES, "sweep")
        told = other.log
        assert f"belongs to the catalogue {owner}" in told
        assert f"{other.home / 'catalogue.sqlite3'}, is {its_id}" in told
        assert f"remove the key {CATALOGUE} from that Redis" in told
        assert broker.llen("interactive") + broker.llen("transfer") == 1
        with Worker(tmp_path / "first", server.url, accept_broker=False, **settings):
            assert job.wait(timeout=WITHIN).version == 1
    broker.delete(CATALOGUE)
    with other:
        assert broker.get(CATALOGUE).decode() == its_id


def test_a_worker_that_waits_for_its_broker_refuses_that_of_another_catalogue(
    server: Valkey, broker: redis.Redis, tmp_path: Path
) -> None:
    """The broker does not answer when the worker starts; once it does, the worker ends and takes no message."""
    broker.set(CATALOGUE, OTHER)
    broker.lpush("interactive", json.dumps(envelope(str(uuid4()), FIELDS)))
    server.kill()
    worker, _ = of_another(tmp_path / "worker", server.url)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(worker.start)
        until(lambda: started.done() or "Cannot connect" in said_by(worker))
        server.restart()
        with pytest.raises(ServerFailed):
            started.result(WITHIN)
    assert f"belongs to the catalogue {OTHER}" in worker.log
    assert broker.llen("interactive") == 1
    assert broker.hlen("unacked") == 0


def test_a_worker_that_waits_for_its_catalogue_takes_no_job_of_another_one(
    server: Valkey, broker: redis.Redis, tmp_path: Path
) -> None:
    """It cannot know its catalogue when it starts; its first job is sent again, and recorded nowhere."""
    file = tmp_path / "catalogue.sqlite3"
    file.mkdir()
    broker.set(CATALOGUE, OTHER)
    with Worker(tmp_path / "worker", server.url, accept_broker=False, catalogue=f"sqlite:///{file}") as worker:
        file.rmdir()
        broker.lpush("interactive", json.dumps(envelope(job := str(uuid4()), FIELDS)))
        until(lambda: f"job {job} waits: the broker" in worker.log)
        assert f"belongs to the catalogue {OTHER}" in worker.log
        catalogue = Catalogue(f"sqlite:///{file}")
        assert catalogue.ledger.get(job) is None
        catalogue.close()


def test_a_recovery_sends_nothing_to_the_broker_of_another_catalogue(
    server: Valkey, broker: redis.Redis, tmp_path: Path
) -> None:
    """Another installation may have accepted the broker while the worker runs; each run says so and ends."""
    said = f"jobs are not recovered for now: the broker {server.url}"
    with Worker(tmp_path / "worker", server.url, beat=True, sweep__recover__every="1s") as worker:
        broker.set(CATALOGUE, OTHER)
        until(lambda: said in worker.log)
        catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
        overdue = {"owner": "dead", "writes_to": None, "parent": None, "lease": timedelta()}
        catalogue.ledger.acquire("lost", "verify", FIELDS, now=clock.now() - timedelta(hours=1), **overdue)
        before = worker.log.count(said)
        until(lambda: worker.log.count(said) > before + 1)  # a whole run after the job was there
        job = catalogue.ledger.get("lost")
        catalogue.close()
    assert job is not None
    assert (job.state, job.fence) == ("running", 1)
    assert "job lost" not in worker.log


def test_a_broker_that_lost_its_data_belongs_to_the_catalogue_again(
    server: Valkey, broker: redis.Redis, tmp_path: Path
) -> None:
    """A worker that runs records its catalogue again, also where it does not have to connect again."""
    with Worker(tmp_path / "worker", server.url, beat=True, sweep__recover__every="1s"):
        owner = broker.get(CATALOGUE)
        broker.flushall()
        assert until(lambda: broker.get(CATALOGUE)) == owner


def test_status_and_doctor_name_another_catalogue(
    server: Valkey,
    broker: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both say which catalogue the broker belongs to, and neither makes a broker belong to one."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZOT_BROKER", server.url)
    (tmp_path / "home").mkdir(mode=0o700)
    Catalogue(f"sqlite:///{tmp_path / 'home' / 'catalogue.sqlite3'}").close()

    def told(command: str) -> list[str]:
        cli.run([command, "--json"])
        checks = json.loads(capsys.readouterr().out)["checks"]
        return [each["detail"] for each in checks if (each["name"], each["outcome"]) == (NAME, "bad")]

    assert (told("doctor"), told("status")) == ([], [])
    assert broker.get(CATALOGUE) is None
    broker.set(CATALOGUE, OTHER)
    for command in ("doctor", "status"):
        assert OTHER in told(command)[0], command


NAME = "catalogue of the broker"


def test_the_first_of_two_catalogues_gets_the_broker(broker: redis.Redis, server: Valkey) -> None:
    """The second is refused as a setting that is wrong, without the password; a broker that is gone is not checked."""
    settings = Settings(broker=server.url.replace("://", "://:secret@"))
    check_owner_in(broker, settings, "first")
    check_owner_in(broker, settings, "first")
    with pytest.raises(OtherCatalogue, match="belongs to the catalogue first") as refused:
        check_owner_in(broker, settings, "second")
    assert "secret" not in str(refused.value)
    check_owner(Settings(broker="redis://127.0.0.1:1/0"), "second")
    check_owner(Settings(broker="amqp://127.0.0.1:1//", results=server.url), "second")


def test_two_brokers_of_one_catalogue_are_told(
    broker: redis.Redis, server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each names the other while both are used; a broker that was replaced, and one of two URLs, are none."""
    settings = Settings(broker=server.url.replace("://", "://:secret@"), home=tmp_path)
    second = Settings(broker=server.database(1), home=tmp_path)
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now)
    with (
        closing(Catalogue(f"sqlite:///{tmp_path / 'catalogue.sqlite3'}")) as catalogue,
        redis.Redis.from_url(second.broker_url) as other,
    ):

        def told(of: Settings) -> list[str]:
            return [each.detail for each in owner_of_broker(of, catalogue)]

        note_broker_in(broker, settings.broker_url, catalogue.brokers)
        note_broker_in(other, second.broker_url, catalogue.brokers)
        assert told(second) == []  # the first one may have been replaced by it
        now += timedelta(minutes=2)
        monkeypatch.setattr(socket, "gethostname", lambda: "another")  # each machine with workers records it
        for client, of in ((other, second), (broker, settings), (broker, settings)):
            note_broker_in(client, of.broker_url, catalogue.brokers)
        assert f"redis://127.0.0.1:{server.port}/0 of " in told(second)[0]
        assert "secret" not in told(second)[0]
        assert "/1 of another" in told(Settings(broker=server.url, home=tmp_path))[0]
        now += timedelta(minutes=4)
        note_broker_in(other, second.broker_url, catalogue.brokers)
        assert told(second) == []
        now += timedelta(minutes=1)
        note_broker_in(broker, settings.broker_url, catalogue.brokers)  # it is used again, and the other one not since
        assert told(settings) == []
        now += timedelta(days=2)
        note_broker_in(other, second.broker_url, catalogue.brokers)
        with sqlite3.connect(tmp_path / "catalogue.sqlite3") as rows:
            assert rows.execute("SELECT COUNT(*) FROM sweep_cursors").fetchone() == (2,)


def test_a_copy_of_a_catalogue_that_is_used_beside_it_is_told(
    broker: redis.Redis, server: Valkey, tmp_path: Path
) -> None:
    """It has the id of the catalogue, and takes its jobs; one that was used only before a move is none."""
    settings, path, copy = Settings(broker=server.url), tmp_path / "catalogue.sqlite3", tmp_path / "copy.sqlite3"
    Catalogue(f"sqlite:///{path}").close()
    shutil.copy(path, copy)
    with closing(Catalogue(f"sqlite:///{path}")) as first, closing(Catalogue(f"sqlite:///{copy}")) as second:

        def told(of: Catalogue) -> list[str]:
            return [each.detail for each in owner_of_broker(settings, of)]

        note_file_in(broker, first)
        assert told(first) == told(second) == []
        [key] = broker.hkeys(FILES)
        broker.hset(FILES, key, f"1 2 {path}")  # long ago
        note_file_in(broker, second)
        assert told(second) == []
        note_file_in(broker, first)
        note_file_in(broker, second)
        until(lambda: (note_file_in(broker, first), note_file_in(broker, second), told(first) and told(second))[-1])
        assert f"a copy, {copy} of {socket.gethostname()}" in told(first)[0]
        assert f"a copy, {path} of {socket.gethostname()}" in told(second)[0]


def test_a_late_comparison_is_repeated_until_the_broker_answers(
    broker: redis.Redis, server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child whose worker did not know its catalogue compares before each job until it could."""
    monkeypatch.setattr(CheckOwner, "is_late", True)
    broker.set(CATALOGUE, OTHER)
    check_owner_late(Settings(broker="redis://127.0.0.1:1/0"), "second")
    with pytest.raises(OtherCatalogue):
        check_owner_late(Settings(broker=server.url), "second")
    broker.delete(CATALOGUE)
    check_owner_late(Settings(broker=server.url), "second")
    check_owner_late(Settings(broker=server.url), "another: it was compared")


def test_a_broker_is_accepted_while_the_catalogue_is_away(broker: redis.Redis, server: Valkey, tmp_path: Path) -> None:
    """`up --accept-broker` was said once: the workers wait for the catalogue, which is told, and get the broker."""
    settings = Settings(broker=server.url, catalogue=f"sqlite:///{tmp_path}")
    broker.set(CATALOGUE, OTHER)
    said: list[str] = []
    supervisor._check_owner(settings, said.append, accept=False)
    assert len(said) == 1
    assert f"catalogue {tmp_path}" in said[0]
    assert broker.get(CATALOGUE).decode() == OTHER
    supervisor._check_owner(settings, said.append, accept=True)
    assert broker.get(CATALOGUE) is None
