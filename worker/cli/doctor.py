"""The command that looks whether everything that the worker needs is there: doctor."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import redis
import typer
from celery import Celery
from kombu.connection import Connection

from worker.catalogue import CatalogueError
from worker.cli.errors import Status
from worker.cli.output import AsJson, out, print_json, size
from worker.cli.pause import told as told_pause
from worker.cli.rejected import open_rejected, told
from worker.context import Context
from worker.settings.model import NoBroker, Settings, load_settings
from worker.storage.errors import StorageError
from worker.storage.probe import PROBE, probe
from zot_artifact_client import BrokerUnavailable
from zot_artifact_client.connection import is_rabbitmq, is_redis, without_credentials

_LITTLE = 1024**3


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `good`, `bad`, or `unknown` where it could not be told."""

    name: str
    outcome: str
    detail: str
    way_out: str | None = None


def doctor(as_json: AsJson = False) -> None:
    """Look whether everything the worker needs is there, and say the way out where it is not."""
    settings = load_settings()
    checks = []
    for check in _checks(settings):
        checks.append(check)
        if not as_json:
            _tell(check)
    if as_json:
        print_json({"good": all(c.outcome == "good" for c in checks), "checks": [asdict(c) for c in checks]})
    raise typer.Exit(_status(checks))


def _checks(settings: Settings) -> Iterator[Check]:
    config = os.environ.get("ZOT_CONFIG")
    yield Check("settings", "good", f"read from {config or 'the environment'}; stores: {', '.join(settings.stores)}")
    settings.prepare()
    yield _home(settings)
    yield from _source_roots(settings)
    yield from _broker(settings)
    try:
        context = Context.open(settings)
    except CatalogueError as error:
        yield Check("catalogue", "unknown", str(error))  # it says the way out itself
        return
    yield _log(context)
    for name in settings.stores:
        yield _store(context, name)
    for pause in context.catalogue.pauses.all():
        way_out = f"`zot-artifacts resume {pause.scope} {pause.name}` ends it"
        yield Check(f"{pause.scope} {pause.name}", "good", f"paused {told_pause(pause.since, pause.reason)}", way_out)
    context.close()


def _home(settings: Settings) -> Check:
    try:
        with tempfile.TemporaryFile(dir=settings.home) as file:
            file.write(PROBE)
    except OSError as error:
        return Check("data directory", "bad", f"{settings.home}: {error.strerror}", "set ZOT_HOME to one that works")
    free = shutil.disk_usage(settings.home).free
    detail = f"{settings.home}: writable, {size(free)} free"
    if free < _LITTLE:
        return Check("data directory", "bad", detail, "make room: downloads and staged files wait there")
    return Check("data directory", "good", detail)


def _source_roots(settings: Settings) -> Iterator[Check]:
    for root in settings.sources.roots:
        if root.is_dir() and os.access(root, os.R_OK | os.X_OK):
            yield Check("source root", "good", str(root))
        else:
            yield Check("source root", "bad", f"{root}: no directory that can be read", "correct sources.roots")


def _broker(settings: Settings) -> Iterator[Check]:
    try:
        url = settings.broker_url
    except NoBroker as error:
        yield Check("broker", "unknown", str(error))
        return
    name = without_credentials(url)
    try:
        if is_redis(url):
            yield _redis(url, name)
        elif is_rabbitmq(url):
            yield _rabbitmq(url, name)
        if settings.results is not None and is_redis(settings.results_url):
            yield _result_backend(settings.results_url)
    except redis.RedisError as error:
        way_out = "start `zot-artifacts up`" if settings.broker is None else "start it, or correct ZOT_BROKER"
        yield Check("broker", "unknown", f"{name}: {_first_line(error)}", way_out)
        return
    yield from _refused(settings)
    yield _workers(url)


def _redis(url: str, name: str) -> Check:
    with redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3) as client:
        client.ping()
        try:
            policy = client.config_get("maxmemory-policy").get("maxmemory-policy")
        except redis.ResponseError:  # hosted ones do not let themselves be asked
            return Check("broker", "good", f"{name} answers; its maxmemory-policy cannot be read")
    if policy == "noeviction":
        return Check("broker", "good", f"{name} answers; maxmemory-policy is noeviction")
    return Check("broker", "bad", f"{name}: maxmemory-policy is {policy}", "set it to noeviction: else jobs are lost")


def _rabbitmq(url: str, name: str) -> Check:
    try:
        with Connection(url, connect_timeout=3) as connection:
            version = connection.connection.server_properties.get("version", "of an unknown version")
    except Exception as error:  # noqa: BLE001 - whatever the transport raises, it could not be told
        return Check("broker", "unknown", f"{name}: {_first_line(error)}", "start it, or correct ZOT_BROKER")
    return Check("broker", "good", f"{name}: RabbitMQ {version} answers; its consumer_timeout cannot be read")


def _result_backend(url: str) -> Check:
    with redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3) as client:
        client.ping()
    return Check("result backend", "good", f"{without_credentials(url)} answers")


def _refused(settings: Settings) -> Iterator[Check]:
    try:
        with open_rejected(settings) as refused:
            counts = refused.counts() if refused else {}
    except BrokerUnavailable as error:
        yield Check("messages", "unknown", str(error))
        return
    if counts:
        yield Check("messages", "good", told(counts), "look at them with `zot-artifacts jobs --refused`")


def _workers(url: str) -> Check:
    app = Celery("zot-artifacts-doctor", broker=url, set_as_current=False)
    try:
        answers = app.control.ping(timeout=2)
    except Exception as error:  # noqa: BLE001 - whatever the transport raises, it could not be told
        return Check("workers", "unknown", f"cannot be asked: {_first_line(error)}")
    finally:
        app.close()
    names = sorted(name for answer in answers for name in answer)
    if names:
        return Check("workers", "good", f"{len(names)} answer: {', '.join(names)}")
    return Check("workers", "bad", "none answers", "start `zot-artifacts up`, or `celery -A worker.app worker`")


def _log(context: Context) -> Check:
    broken = context.catalogue.verifications.first_broken()
    if broken is None:
        return Check("catalogue", "good", "its tables are up to date, the chain of the verification log is whole")
    detail = f"the verification log was changed at row {broken}"
    return Check("catalogue", "bad", detail, "compare it with a backup; verdicts from there on prove nothing")


def _store(context: Context, name: str) -> Check:
    title = f"store {name}"
    try:
        store = context.stores[name]
        store.health_check()
        fault = probe(store)
        advice = store.advice()
    except StorageError as error:
        return Check(title, "unknown", error.message, f"correct stores.{name}, or bring the store back")
    if fault:
        return Check(title, "bad", fault, "do not rely on it before that is mended")
    detail = f"{context.settings.stores[name].type}: writes, reads, verifies, lists and deletes"
    return Check(title, "good", detail, "; ".join(advice) or None)


def _status(checks: list[Check]) -> Status:
    outcomes = {check.outcome for check in checks}
    if "bad" in outcomes:
        return Status.BAD
    return Status.UNKNOWN if "unknown" in outcomes else Status.GOOD


def _tell(check: Check) -> None:
    mark = {"good": "[green]✓[/]", "bad": "[bold red]✗[/]", "unknown": "[yellow]?[/]"}[check.outcome]
    console = out()
    console.print(mark, end=" ")
    line = f"{check.name}: {check.detail}"
    console.print(f"{line}; {check.way_out}" if check.way_out else line, markup=False)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
