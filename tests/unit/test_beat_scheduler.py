"""Beat runs with any content of its schedule file."""

import dbm
import os
import pickle
import resource
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from amqp import AccessRefused
from celery import Celery
from celery.beat import PersistentScheduler, SchedulingError
from kombu import Connection

from tests.servers import Valkey
from worker import beat_scheduler
from worker.beat_scheduler import Scheduler
from worker.schedule import beat_schedule
from worker.settings import Settings


@pytest.fixture
def app():
    with Celery(broker="memory://", set_as_current=False) as app:
        app.conf.beat_schedule = {"recover": {"task": "sweep.recover.v1", "schedule": timedelta(seconds=15)}}
        yield app


def open_scheduler(app, path):
    return Scheduler(app=app, schedule_filename=str(path), lazy=False)


def test_a_worker_whose_clock_is_minutes_ahead_drops_no_sweep(tmp_path):
    """Beat writes by its own clock when a message expires, and a worker elsewhere compares it with its own."""
    webhooks = {"ci": {"url": "https://ci.example/zot", "secret": "x" * 16}}
    schedule = beat_schedule(Settings(home=tmp_path, webhooks=webhooks))
    assert {"sweep.recover", "sweep.webhooks"} <= schedule.keys()
    assert {name for name, each in schedule.items() if each["options"]["expires"] < 240} == set()


@pytest.mark.parametrize("content", [b"", b"torn", b"\x00" * 4096, b"SQLite format 3\x00" + b"x" * 100])
def test_a_torn_schedule_file_is_discarded(app, tmp_path, content):
    """A file that cannot be read costs a log line, not the sweeps."""
    (tmp_path / "schedule").write_bytes(content)
    scheduler = open_scheduler(app, tmp_path / "schedule")
    assert "recover" in scheduler.schedule
    scheduler.close()


def test_what_is_no_file_is_named_and_stays(app, tmp_path):
    """To open a FIFO would never end; beat says what is there in place of its schedule file, and removes nothing."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SystemExit, match="is a FIFO and no file: name another one with --schedule"):
        open_scheduler(app, tmp_path / "fifo")
    assert (tmp_path / "fifo").is_fifo()


@pytest.mark.parametrize("entries", [b"", pickle.dumps(5)])
def test_torn_entries_of_a_whole_file_are_discarded(app, tmp_path, entries):
    """Entries that Celery does not expect are logged and discarded; a file with a similar name stays."""
    (tmp_path / "schedule-notes.txt").write_text("notes")
    with dbm.open(str(tmp_path / "schedule"), "c") as file:
        file[b"entries"] = entries
        for name, value in (("__version__", "5"), ("tz", "UTC"), ("utc_enabled", True)):
            file[name.encode()] = pickle.dumps(value)
    scheduler = open_scheduler(app, tmp_path / "schedule")
    assert "recover" in scheduler.schedule
    scheduler.close()
    assert (tmp_path / "schedule-notes.txt").read_text() == "notes"


def test_a_last_run_ahead_of_the_clock_is_corrected(app, tmp_path):
    """After a clock that was a day ahead is set right, each sweep runs within its period, also without a restart."""
    first = open_scheduler(app, tmp_path / "schedule")
    first.schedule["recover"].last_run_at += timedelta(days=1)
    first.sync()
    first.close()
    scheduler = open_scheduler(app, tmp_path / "schedule")
    assert scheduler.schedule["recover"].is_due().next <= 15
    scheduler.schedule["recover"].last_run_at += timedelta(hours=2)
    scheduler._correct()
    assert scheduler.schedule["recover"].is_due().next <= 15
    scheduler.close()


def test_a_run_that_is_due_is_started_by_one_of_two_beats(app: Celery, tmp_path, valkey: Valkey, monkeypatch):
    """So is the next one; a record that a clock far ahead has left, or no answer of Redis, stops neither."""
    app.conf.result_backend = valkey.url
    started = []
    monkeypatch.setattr(PersistentScheduler, "apply_async", lambda beat, *_, **__: started.append(beat))
    beats = [open_scheduler(app, tmp_path / name) for name in "ab"]

    def run() -> int:
        started.clear()
        for beat in beats:
            beat.apply_entry(beat.schedule["recover"])
        return len(started)

    assert run() == 1
    assert run() == 0, "another beat is late by less than a period"
    client = redis.Redis.from_url(valkey.url)
    (key,) = client.keys("*beat:started*")
    assert 10_000 < client.pttl(key) < 15_000, "the next run is not stopped"
    client.pexpire(key, timedelta(days=1))
    assert run() == 1
    app.conf.result_backend = "redis://127.0.0.1:1/0"
    beats = [open_scheduler(app, tmp_path / name) for name in "cd"]
    assert run() == 2
    for beat in beats:
        beat.close()


def test_a_run_whose_message_cannot_be_sent_is_started_by_another_beat(app: Celery, tmp_path, valkey: Valkey):
    """The broker of one beat is away, and the result backend is not."""
    valkey.empty()
    app.conf.result_backend = valkey.url
    app.conf.task_publish_retry = False
    queue = app.connection().default_channel  # of this process: other tests use it too
    before = queue._size("celery")
    with Celery(broker="redis://127.0.0.1:1/0", backend=valkey.url, set_as_current=False) as alone:
        alone.conf.beat_schedule, alone.conf.task_publish_retry = app.conf.beat_schedule, False
        beats = [open_scheduler(alone, tmp_path / "a"), open_scheduler(app, tmp_path / "b")]
        for beat in beats:
            beat.apply_entry(beat.schedule["recover"])
        assert queue._size("celery") == before + 1
        for beat in beats:
            beat.close()


@pytest.mark.parametrize("fate", ["killed", "without a broker"])
def test_a_run_that_a_beat_did_not_send_waits_for_no_other_period(
    app: Celery, tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    """A beat is killed just before it sends, or its broker is away for a moment: the daily sweep starts soon after."""
    valkey.empty()
    app.conf.result_backend = valkey.url
    app.conf.beat_schedule["recover"]["schedule"] = timedelta(days=1)
    first, second = [open_scheduler(app, tmp_path / name) for name in "ab"]
    sent: list[Scheduler] = []

    def fail(*_: object, **__: object) -> None:
        raise SystemExit if fate == "killed" else SchedulingError("no broker")

    monkeypatch.setattr(PersistentScheduler, "apply_async", fail)
    with suppress(SystemExit):
        first.apply_entry(first.schedule["recover"])
    monkeypatch.setattr(PersistentScheduler, "apply_async", lambda beat, *_, **__: sent.append(beat))
    if fate == "killed":  # another beat comes before the claim of the first one has expired
        first.close()
        first = second
        first.apply_entry(first.schedule["recover"])
        with redis.Redis.from_url(valkey.url) as client:
            client.delete(*client.keys("*beat:started*"))
    assert sent == []
    assert first.schedule["recover"].is_due().next <= 30
    first.apply_entry(first.schedule["recover"])
    assert sent == [first]
    first.close()


def test_a_beat_that_fails_after_another_one_has_started_the_run_does_not_free_it(
    app: Celery, tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its broker was silent for longer than its claim lasts; a third beat would start the run again."""
    valkey.empty()
    app.conf.result_backend = valkey.url
    beats = [open_scheduler(app, tmp_path / name) for name in "abc"]
    sent: list[Scheduler] = []

    def fail_late(*_: object, **__: object) -> None:
        with redis.Redis.from_url(valkey.url) as client:
            client.delete(*client.keys("*beat:started*"))  # as when the claim expires
        monkeypatch.setattr(PersistentScheduler, "apply_async", lambda beat, *_, **__: sent.append(beat))
        beats[1].apply_entry(beats[1].schedule["recover"])
        raise SchedulingError("no broker")

    monkeypatch.setattr(PersistentScheduler, "apply_async", fail_late)
    for beat in (beats[0], beats[2]):
        beat.apply_entry(beat.schedule["recover"])
    assert sent == [beats[1]]
    for beat in beats:
        beat.close()


def test_a_run_that_a_beat_of_the_version_before_has_started_is_not_due_in_30_seconds(
    app: Celery, tmp_path: Path, valkey: Valkey
) -> None:
    """That version recorded an empty text for the whole period: the run was sent."""
    valkey.empty()
    app.conf.result_backend = valkey.url
    app.conf.beat_schedule["recover"]["schedule"] = timedelta(days=1)
    beat = open_scheduler(app, tmp_path / "schedule")
    with redis.Redis.from_url(valkey.url) as client:
        client.set("zot-artifacts:beat:started:recover:86400", "", ex=60)
    beat.apply_entry(beat.schedule["recover"])
    assert beat.schedule["recover"].is_due().next > 60
    beat.close()


def test_a_full_disk_stops_no_run_and_has_the_last_runs_once_there_is_room(
    app: Celery, tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beat would end after the message was sent, and send it again when it is restarted."""
    valkey.empty()
    app.conf.result_backend = valkey.url
    monkeypatch.setattr(Scheduler, "send_task", lambda *_, **__: None)
    beat = open_scheduler(app, tmp_path / "schedule")
    beat.schedule["recover"].last_run_at -= timedelta(hours=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        beat.tick()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with redis.Redis.from_url(valkey.url) as client:
        assert client.mget(client.keys("*beat:started*")) == [b"sent"]
    beat.close()
    assert open_scheduler(app, tmp_path / "schedule").schedule["recover"].total_run_count == 1


def test_beat_waits_for_a_rabbitmq_that_refuses_its_password(app: Celery, tmp_path, monkeypatch, caplog):
    """Celery ends beat with the error in a thousand lines, and a service manager starts it again every few seconds."""
    answers: list[Exception | None] = [None, AccessRefused("ACCESS_REFUSED - Login was refused using PLAIN", (0, 0))]

    def connect(*_: object) -> None:
        if (error := answers.pop()) is not None:
            raise error

    monkeypatch.setattr(Connection, "ensure_connection", connect)
    monkeypatch.setattr(beat_scheduler, "_REFUSED_WAIT", 0)
    scheduler = open_scheduler(app, tmp_path / "schedule")
    scheduler._ensure_connected()
    scheduler.close()
    assert answers == []
    assert "refuses this: it refuses the user or password of its URL; beat waits for that" in caplog.text
