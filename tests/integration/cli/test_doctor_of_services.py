"""`doctor` reports workers, beat, circuit breakers and the data directory, with real processes."""

import fcntl
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.servers import Valkey
from tests.servers.tls import Authority, TlsProxy
from tests.servers.worker import Beat, Worker
from tests.waiting import until
from worker import cli, clock
from worker.beat_scheduler import last_tick
from worker.catalogue import CatalogueUnavailable
from worker.cli.session import open_session
from worker.limits.catalogue_outage import note_catalogue
from worker.limits.circuit_breaker import CircuitBreaker
from worker.limits.expiring_counters import Counters
from worker.limits.shared_redis import SharedRedis
from worker.settings import load_settings
from zot_artifact_client import ArtifactClient
from zot_artifact_client.broker_urls import redis_client

Doctor = Callable[[], dict[str, Any]]

AWAY = CatalogueUnavailable("catalogue zot: the password is wrong")


@pytest.fixture
def doctor(
    tmp_path: Path, broker: Valkey, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Doctor:
    """Return what runs `doctor` on this broker, with a catalogue, and returns its checks by name."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZOT_BROKER", broker.url)
    open_session(load_settings(), create=True).close()

    def run() -> dict[str, Any]:
        cli.run(["doctor", "--json"])
        return {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}

    return run


class _Interactive(Worker):
    """A worker that serves one queue."""

    def command(self) -> list[str]:
        return [*super().command(), "--queues", "interactive"]


def test_a_queue_without_a_worker_is_bad(
    doctor: Doctor, broker: Valkey, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any worker, and with one that serves other queues only, the line names what is missing; no paused one.

    What no worker has taken is counted. Where `up` runs, to start it is no way out: it has to be stopped first.
    """
    with ArtifactClient(broker.url) as client:
        client.replicate("releases", "app.tgz", to="dr")
    checks = doctor()
    unserved, waiting = checks["workers"], checks["queues"]["detail"]
    assert waiting.startswith(
        f"no worker has taken 1 message in transfer, the oldest job of a client since {clock.now():%Y-%m-%d}"
    )
    assert (unserved["outcome"], unserved["detail"]) == ("bad", "none answers")
    assert {checks[name]["way_out"].partition(",")[0] for name in ("workers", "beat")} == {"start `zot-artifacts up`"}
    settings = load_settings()
    with monkeypatch.context() as patch, settings.up_lock.open("w") as lock:
        patch.delenv("ZOT_BROKER")
        fcntl.flock(lock, fcntl.LOCK_EX)
        restart = "stop `zot-artifacts up` and start it again"
        for url, names in ((broker.url, ("workers", "beat")), ("redis://127.0.0.1:1", ("broker",))):
            settings.broker_file.write_text(url)
            checks = doctor()
            assert {checks[name]["way_out"].partition(",")[0] for name in names} == {restart}
    with _Interactive(tmp_path, broker.url, concurrency=1):
        found = doctor()["workers"]
        assert [cli.run(["pause", "queue", queue]) for queue in ("transfer", "sweep")] == [0, 0]
        capsys.readouterr()
        paused = doctor()["workers"]
    assert (found["outcome"], "none serves transfer, sweep" in found["detail"]) == ("bad", True)
    assert "--queues transfer,sweep" in found["way_out"]
    assert (paused["outcome"], "every queue but the paused sweep, transfer is" in paused["detail"]) == ("good", True)


def test_a_worker_that_refuses_its_catalogue_is_bad(
    doctor: Doctor, broker: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older copy of the file in its place has the same id and opens well here, and no worker uses it.

    Where the catalogue does not answer here either, nothing is said of the workers: a restart would not help. Since
    when they cannot use it is told, by `status` too; none can since the last of them cannot.
    """
    with Worker(tmp_path, broker.url, concurrency=1) as worker, Celery(backend=broker.url, set_as_current=False) as app:
        file, older = worker.home / "catalogue.sqlite3", tmp_path / "older"
        assert "catalogue of the workers" not in doctor()
        older.write_bytes(file.read_bytes())
        older.replace(file)
        found = doctor()
        assert cli.run(["sweep", "recover"]) == 0
        until(lambda: "jobs are not recovered for now" in worker.log)
        note_catalogue(app, "worker@elsewhere", error=None)  # which can use it
        capsys.readouterr()
        assert cli.run(["status"]) == 1
        answers = capsys.readouterr().out
        last_year = clock.now() - timedelta(days=400)
        with monkeypatch.context() as earlier:
            earlier.setattr(clock, "host_time", lambda: last_year)
            note_catalogue(app, "worker@elsewhere", error=AWAY)
        note_catalogue(app, "worker@elsewhere", error=AWAY)
        with redis_client(broker.url) as client:  # a worker of before this version told no error
            by_worker, now = "zot-artifacts:catalogue:away-by-worker", clock.now().isoformat()
            client.hset(by_worker, "worker@old", f"{last_year.isoformat()} {now}")
            cli.run(["status", "--json"])
            client.hdel(by_worker, "worker@old")
        both = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("ZOT_CATALOGUE", "postgresql+psycopg://zot@127.0.0.1:1/zot")
            away = doctor()
            cli.run(["status"])
            lost = capsys.readouterr().err
        note_catalogue(app, "worker@elsewhere", error=None)
    remembered = doctor()["catalogue of the workers"]["detail"]
    assert (away["catalogue"]["outcome"], "catalogue of the workers" in away) == ("unknown", False)
    for told in (away["catalogue"]["detail"], lost):
        assert f"no worker can use it since {clock.now():%Y-}" in told
    for told in (answers, remembered):
        assert re.search(rf"it answers here, and jobs wait at \w+@\S+ since {clock.now():%Y-}.*the last error", told)
        assert "replaced while it was in use" in told
    times = re.findall(r"@\S+ since (\d+)-", both["catalogue of the workers"]["detail"])
    assert sorted(times) == [f"{last_year:%Y}", f"{last_year:%Y}", f"{clock.now():%Y}"]
    assert found["catalogue"]["outcome"] == "good"
    assert found["catalogue of the workers"]["outcome"] == "bad"
    assert "replaced while it was in use" in found["catalogue of the workers"]["detail"]


def test_a_catalogue_that_another_program_keeps_locked_is_bad(
    doctor: Doctor, broker: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All services answer, and no job goes on: a transaction was left open in a shell, for example.

    The workers cannot use it for the same cause: no line says that they have another catalogue.
    """
    monkeypatch.setattr("worker.report.service_checks._LOCKED_FOR", 0.1)
    assert "catalogue lock" not in doctor()
    with Celery(backend=broker.url, set_as_current=False) as app:
        note_catalogue(app, "worker@elsewhere", error=AWAY)
    with closing(sqlite3.connect(tmp_path / "home" / "catalogue.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        locked = doctor()
        assert (locked["catalogue lock"]["outcome"], "catalogue of the workers" in locked) == ("bad", False)
        assert f"jobs wait at worker@elsewhere since {clock.now():%Y-}" in locked["catalogue lock"]["detail"]
        other.rollback()
    assert doctor()["catalogue of the workers"]["outcome"] == "bad"


@pytest.mark.parametrize("there", [True, False])
def test_a_result_backend_of_its_own_is_checked(
    doctor: Doctor, broker: Valkey, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    """It has a line of its own, with the way out, and the broker stays good when only it does not answer."""
    monkeypatch.setenv("ZOT_RESULTS", broker.url.removesuffix("/0") + "/1" if there else "redis://127.0.0.1:1/1")
    found = doctor()
    assert found["broker"]["outcome"] == "good"
    assert found["result backend"]["outcome"] == ("good" if there else "unknown")
    assert there or "ZOT_RESULTS" in found["result backend"]["way_out"]
    if there:
        authority = Authority(tmp_path, "authority")
        with TlsProxy(broker.port, authority.context(expired=True)) as proxy:
            url = f"rediss://127.0.0.1:{proxy.port}/1?ssl_ca_certs={authority.path}"
            monkeypatch.setenv("ZOT_RESULTS", url)
            found = doctor()
        assert found["result backend"]["detail"].endswith("has expired; renew it on the server")
        assert found["result backend"]["way_out"] is None, "the setting is right"


def test_beat_is_good_while_it_ticks(doctor: Doctor, broker: Valkey, tmp_path: Path) -> None:
    """Beat that never ticked is bad; beside a real one the line is good."""
    assert doctor()["beat"]["outcome"] == "bad"
    with Beat(tmp_path, broker.url), redis_client(broker.url) as client:
        until(lambda: last_tick(client) is not None)
        found = doctor()["beat"]
    assert (found["outcome"], found["detail"].startswith("it ticked ")) == ("good", True)


def test_the_error_of_a_store_is_told_once(doctor: Doctor, broker: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the circuit breaker opened for the error that the store still has, `doctor` and `status` have it once."""
    settings = load_settings()
    settings.prepare()
    shutil.rmtree(settings.stores["dr"].root)  # type: ignore[union-attr]
    error = doctor()["store dr"]["detail"]
    with redis_client(broker.url) as client:
        breaker = CircuitBreaker("dr", Counters(SharedRedis(lambda: client)), settings.breaker)
        for _ in range(settings.breaker.failures):
            breaker.record_failure(f"dr: {error}")
    found = doctor()["store dr"]
    assert (found["outcome"], found["detail"].count(error)) == ("unknown", 1)
    assert "its circuit breaker is open since" in found["detail"]
    cli.run(["status"])
    told = capsys.readouterr().out
    assert (told.count(error), "\ndisk primary: good" in told, "\ndisk dr: " in told) == (1, True, False)


def test_an_open_circuit_breaker_is_bad(doctor: Doctor, broker: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    """A store is bad although it answers, with the error; so `status` and `stores` say, until a probe succeeds."""
    settings = load_settings()
    with redis_client(broker.url) as client:
        breaker = CircuitBreaker("dr", Counters(SharedRedis(lambda: client)), settings.breaker)
        for _ in range(settings.breaker.failures):
            breaker.record_failure("dr: the disk of the gateway is full")
        Counters(SharedRedis(lambda: client)).delete("breaker:dr:open")  # as if its time were over, and no job came
    checks = doctor()
    assert (checks["store dr"]["outcome"], "circuit breaker is open" in checks["store dr"]["detail"]) == ("bad", True)
    assert checks["store primary"]["outcome"] == "good"
    cli.run(["status", "--json"])
    of_status = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    cli.run(["stores", "--json"])
    of_stores = {row["store"]: row["breaker"] for row in json.loads(capsys.readouterr().out)["stores"]}
    assert of_stores["primary"] is None
    for told in (checks["store dr"]["detail"], of_status["store dr"]["detail"], of_stores["dr"]):
        assert f"is open since {clock.now():%Y-%m-%d}" in told
        assert told.endswith("the next one may probe it now; the store failed with: the disk of the gateway is full")
    assert "sweep probe" in of_status["store dr"]["way_out"]


def test_an_open_data_directory_is_bad(doctor: Doctor, tmp_path: Path) -> None:
    """A data directory that others can read is bad, with the command that closes it."""
    assert doctor()["data directory"]["outcome"] == "good"
    (tmp_path / "home").chmod(0o755)
    found = doctor()["data directory"]
    assert (found["outcome"], found["way_out"]) == ("bad", f"chmod go= {tmp_path / 'home'}")


def test_an_open_root_outside_the_data_directory_is_told(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store whose root other users can use is told with the way out, unless its settings give it a mode."""
    roots = {name: tmp_path / "disks" / name for name in ("open", "shared", "closed")}
    stores: dict[str, Any] = {name: {"type": "filesystem", "root": str(root)} for name, root in roots.items()}
    stores["shared"] |= {"dir_mode": "0755", "file_mode": "0644"}
    for root in roots.values():
        root.mkdir(parents=True)
        root.chmod(0o755)
    roots["closed"].chmod(0o700)
    monkeypatch.setenv("ZOT_STORES", json.dumps(stores))
    checks = doctor()
    assert f"`chmod go= {roots['open']}`" in checks["store open"]["way_out"]
    assert checks["store shared"]["way_out"] is None
    assert checks["store closed"]["way_out"] is None
