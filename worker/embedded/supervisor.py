"""Run broker, workers, beat and Flower on one data directory until SIGINT or SIGTERM."""

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from celery import Celery
from kombu.connection import Connection

from worker.catalogue import Catalogue, CatalogueError, check_file, checkpoint_write_ahead_log
from worker.counted import counted
from worker.embedded import valkey
from worker.embedded.processes import Children, Program, StopRequested, too_few_files
from worker.intake.catalogue_of_broker import accept_broker, check_owner
from worker.settings import Settings, SettingsError
from worker.settings.private_data_directory import way_out_of_home
from zot_artifact_client.broker_urls import parse_url, redis_client
from zot_artifact_client.connection import UNREACHABLE, broker_fault, unavailable
from zot_artifact_client.contract import Queue
from zot_artifact_client.contract.queues import queues
from zot_artifact_client.errors import BrokerUnavailable

FLOWER_USER = "zot"
_READY_WITHIN = 120.0
_REQUEUE_WITHIN = 23.0
"""Seconds that a worker has to requeue its jobs, after the grace that it gives them. It ends itself after 20."""
_POLL = 0.05
_ROTATED_EVERY = 60.0
"""Seconds between two checks of the size of the logs."""
_BROKER_WITHIN = 60.0
"""Seconds: the server reads its file first, which may be large."""


class AlreadyRunning(SettingsError):
    """Another `up` runs on the data directory, or on the catalogue with a broker of its own."""


class NotReady(Exception):
    """A started program does not answer; the message names it and its log."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Which programs `up` runs beside the broker."""

    concurrency: int = 2
    beat: bool = True
    flower: bool = True
    gateway: bool = False
    accept_broker: bool = False
    """The broker may belong to another catalogue: this one was put in its place."""


@dataclass(frozen=True, slots=True)
class Running:
    """The addresses of the running programs, and the directory of their logs."""

    home: Path
    logs: Path
    broker_file: Path | None
    """The file with the embedded broker's URL; None for a configured broker."""
    flower_url: str | None
    flower_password_file: Path | None
    gateway_url: str | None = None


def run(
    settings: Settings, options: UpOptions, *, ready: Callable[[Running], None], say: Callable[[str], None]
) -> None:
    """Run everything, call `ready` once the worker answers, and return after an orderly shutdown.

    Raises:
        AlreadyRunning: another `up` runs on the data directory, or on the catalogue; names its process.
        NotReady, CannotStart: a program does not answer in time, or is not started; all have been stopped.
        BrokerUnavailable: the broker does not answer in time, or refuses this user, or what a worker does; all have
            been stopped.
        CatalogueError: something else is where the file of the catalogue belongs; nothing was started.
        OtherCatalogue: the broker belongs to another catalogue; no worker was started.
    """
    if few := too_few_files():
        say(few)
    settings.prepare()  # and a umask by which queues, artifacts, catalogue and logs are for this user alone
    logs = _make_logs(settings)
    catalogue = check_file(settings.catalogue_url)  # workers would start again and again, and no command would say why
    alone = catalogue if settings.broker is None else None
    with _locked(settings) as lock, _catalogue_locked(alone, settings.home), Children(logs, say) as children:
        try:
            if settings.broker is None:
                start_broker(settings, children, lock, say)
            else:
                _await_broker(settings.broker_url, children, say)
            _check_owner(settings, say, accept=options.accept_broker)
            running = _start_celery(settings, options, children, logs)
            gateway = _start_gateway(settings, children) if options.gateway else None
            _await_worker(settings, children, logs)
            if gateway is not None:  # it starts beside the workers
                _await(children, lambda: _listens(gateway), _READY_WITHIN, f"the gateway; see {logs / 'gateway.log'}")
                running = replace(running, gateway_url=f"http://127.0.0.1:{gateway}")
            ready(running)
            while True:
                children.rotate(settings.log.size, settings.log.keep)
                children.wait(_ROTATED_EVERY)
        except StopRequested:
            say("shutting down: running jobs have a few seconds, then they are requeued")
        finally:
            children.stop("worker", "sweeper", "beat", "gateway", "flower")
            children.stop("valkey")
            if settings.broker is None:
                settings.broker_file.unlink(missing_ok=True)
            checkpoint_write_ahead_log(settings.catalogue_url)  # one that was killed could not


def _make_logs(settings: Settings) -> Path:
    logs = settings.home / "logs"
    try:
        logs.mkdir(exist_ok=True)
        for directory in (logs, settings.run_dir):
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "Permission denied", str(directory))
    except OSError as error:
        raise SettingsError(
            f"the data directory {settings.home} cannot be used: {error.filename}: {error.strerror}; "
            f"{way_out_of_home(settings.home, error)}"
        ) from error
    return logs


def start_broker(settings: Settings, children: Children, lock: int, say: Callable[[str], None]) -> None:
    """Start the embedded broker, and write its URL to its file. `lock` is locked as long as it runs.

    Another program may take its port meanwhile. That may be the broker of a copy of this data directory, which has the
    same password and the id of the same catalogue: the jobs of both would be mixed, so the broker gets another port.
    """
    while (url := _start_on_port(settings, children, lock, say)) is None:
        children.stop("valkey")
    held = valkey.requeue_unacknowledged(url)
    if held:
        say(f"queued again, because the last `up` was killed: {counted(held, 'job')}")
    valkey.write_secret(settings.broker_file, url + "\n")


def _start_on_port(settings: Settings, children: Children, lock: int, say: Callable[[str], None]) -> str | None:
    """Start the broker and return its URL once it answers; None if another program has taken its port."""
    password = valkey.remembered_secret(settings.run_dir / "broker-password")
    port = valkey.remembered_port(settings.run_dir / "broker-port")
    url = valkey.url(port, password)
    children.start(valkey.program(settings, port, password, lock, say))

    def is_taken() -> bool:
        return children.pid("valkey") is None and valkey.free_port(port) is None

    def answers() -> bool:
        return (pid := children.pid("valkey")) is not None and valkey.answering_process(url) == pid

    what = f"the broker; see {settings.home}/logs/valkey.log"
    _await(children, lambda: answers() or is_taken(), _BROKER_WITHIN, what)
    return url if answers() else None


def _await_broker(url: str, children: Children, say: Callable[[str], None]) -> None:
    """Wait until a broker of the settings answers, and say at once that it is awaited."""
    deadline, told = time.monotonic() + _BROKER_WITHIN, False
    while (fault := _fault_of_broker(url)) is not None:
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"{fault}; start it, or correct ZOT_BROKER")
        if not told:
            say(f"{fault}; waiting for it for {_BROKER_WITHIN:.0f} s: start it, or press Ctrl-C and correct ZOT_BROKER")
        told = True
        children.wait(1.0)


def _fault_of_broker(url: str) -> BrokerUnavailable | None:
    """Return why a broker does not answer now, None if it does. Raise it, if waiting does not help."""
    server = parse_url(url, "broker")
    try:
        if server.is_redis:
            with redis_client(url, socket_timeout=3, socket_connect_timeout=3) as client:
                client.ping()
        else:
            with Connection(server.text, ssl=server.tls, connect_timeout=3) as connection:
                _ = connection.connection
    except Exception as error:  # each transport raises other ones
        fault = unavailable(error, "broker", url)
        if broker_fault(error, url):
            raise fault from error
        return fault
    return None


def _check_owner(settings: Settings, say: Callable[[str], None], *, accept: bool) -> None:
    """Refuse the broker of another catalogue here: the workers would end and be started again and again.

    A catalogue that cannot be opened is told: all programs start, and wait for it.
    """
    if accept:
        accept_broker(settings)
    try:
        catalogue = Catalogue(settings.catalogue_url)
    except CatalogueError as error:
        say(f"{error}; until then, no job is done")
        return
    catalogue.close()
    check_owner(settings, catalogue.identity)


def _start_celery(settings: Settings, options: UpOptions, children: Children, logs: Path) -> Running:
    environment = _environment(settings)
    _start_workers(settings, options, children, environment)
    if options.beat:
        schedule = str(settings.run_dir / "beat-schedule")
        children.start(_celery("beat", "--schedule", schedule, "--pidfile=", environment=environment))
    url, password_file = None, None
    if options.flower:
        password_file = settings.run_dir / "flower-password"
        password = valkey.remembered_secret(password_file)
        port = valkey.remembered_port(settings.run_dir / "flower-port")
        url = f"http://127.0.0.1:{port}"
        # In its environment, because every process can read its command line.
        environment |= {"FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{password}"}
        children.start(_celery("flower", "--address=127.0.0.1", f"--port={port}", environment=environment))
        _await(children, lambda: _listens(port), _READY_WITHIN, f"Flower; see {logs / 'flower.log'}")
    broker_file = settings.broker_file if settings.broker is None else None
    return Running(settings.home, logs, broker_file, url, password_file)


def _start_gateway(settings: Settings, children: Children) -> int:
    """Start the gateway on a loopback port that stays the same, and return the port."""
    port = valkey.remembered_port(settings.run_dir / "gateway-port")
    command = (sys.executable, "-m", "worker.cli", "serve", "--port", str(port))
    children.start(Program("gateway", command, environment=_environment(settings), grace=_REQUEUE_WITHIN))
    return port


def _start_workers(settings: Settings, options: UpOptions, children: Children, environment: dict[str, str]) -> None:
    """Start a worker for users and one for sweeps, so that a sweep of an hour takes no process from users."""
    names = [queue.name for queue in queues(unrouted=settings.serves_default_queue)]
    grace = settings.jobs.grace.total_seconds() + _REQUEUE_WITHIN
    for role, concurrency in (("worker", options.concurrency), ("sweeper", 1)):
        served = [name for name in names if (name == Queue.SWEEP) == (role == "sweeper")]
        arguments = (
            "--hostname",
            _node(settings, role),
            "--concurrency",
            str(concurrency),
            "--queues",
            ",".join(served),
        )
        program = _celery("worker", *arguments, environment=environment, grace=grace)
        children.start(replace(program, name=role))


def _celery(command: str, *arguments: str, environment: dict[str, str], grace: float = 10.0) -> Program:
    level = () if command == "flower" else ("--loglevel", "INFO")
    full = (sys.executable, "-m", "celery", "-A", "worker.app", command, *level, *arguments)
    return Program(command, full, environment=environment, grace=grace)


def _environment(settings: Settings) -> dict[str, str]:
    """Return the environment from which the programs read the settings of this process."""
    environment = {
        "ZOT_HOME": str(settings.home),
        "PYTHONUNBUFFERED": "1",
        "MALLOC_ARENA_MAX": "2",  # otherwise each thread that moves parts keeps a heap of its own
    }
    if config := os.environ.get("ZOT_CONFIG"):
        environment["ZOT_CONFIG"] = str(Path(config).absolute())
    return environment


def _node(settings: Settings, role: str = "worker") -> str:
    """Return a worker's node name, unique on a broker that other hosts use too."""
    own = role if settings.broker is None else f"{role}-{os.getpid()}"
    return f"{own}@{socket.gethostname()}"


def _await_worker(settings: Settings, children: Children, logs: Path) -> None:
    server = parse_url(settings.broker_url, "broker")
    app = Celery("zot-artifacts-up", set_as_current=False)
    app.conf.update(server.broker_settings)
    node = _node(settings)

    def pong() -> bool:
        try:
            return bool(app.control.ping(destination=[node], timeout=0.5))
        except UNREACHABLE as error:
            if broker_fault(error, settings.broker_url):  # which does not pass by itself
                raise unavailable(error, "broker", settings.broker_url) from error
            return False

    try:
        _await(children, pong, _READY_WITHIN, f"the worker; see {logs / 'worker.log'}")
    finally:
        app.close()


def _await(children: Children, answers: Callable[[], bool], within: float, what: str) -> None:
    deadline = time.monotonic() + within
    while not answers():
        if time.monotonic() > deadline:
            raise NotReady(f"no answer within {within:.0f} s from {what}")
        children.wait(_POLL)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def _locked(settings: Settings) -> Iterator[int]:
    """Lock the data directory. The embedded broker holds the lock too: none starts beside one that has not ended."""
    with _lock(settings.up_lock, settings.home) as (fd, other):
        if other is not None:
            raise AlreadyRunning(
                f"`zot-artifacts up` runs on {settings.home} already (process {other.pid}): stop that one first, or "
                "set ZOT_HOME to another data directory"
            )
        yield fd


@contextmanager
def _catalogue_locked(file: Path | None, home: Path) -> Iterator[None]:
    """Lock the file of a catalogue against another `up` with a broker of its own: that one has other messages.

    Its `sweep.recover` would send the open jobs of both to its own broker, where no service awaits their results.
    """
    if file is None or not os.access(file.parent, os.W_OK | os.X_OK):  # SQLite cannot use it either, and workers wait
        yield
        return
    path = file.resolve()
    with _lock(path.with_name(f"{path.name}-up"), home) as (_, other):
        if other is not None:
            raise AlreadyRunning(
                f"`zot-artifacts up` of the data directory {other.home} (process {other.pid}) runs on the catalogue "
                f"{path} already, with a broker of its own: stop that one first, set ZOT_CATALOGUE to another "
                f"catalogue, or ZOT_BROKER to the URL in {other.home / 'run' / 'broker-url'}"
            )
        yield


@dataclass(frozen=True, slots=True)
class _Holder:
    """The `up` that has a lock."""

    pid: str
    home: Path


@contextmanager
def _lock(path: Path, home: Path) -> Iterator[tuple[int, _Holder | None]]:
    """Lock a file for this process, and yield its descriptor; with it the holder, if another `up` has the lock."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if (other := _await_lock(fd)) is None:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n{home}\n".encode(errors="surrogateescape"), 0)
        yield fd, other
    finally:
        os.close(fd)


def _await_lock(fd: int) -> _Holder | None:
    deadline = time.monotonic() + 20
    is_first = True
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, home = os.fsdecode(os.pread(fd, 8192, 0)).partition("\n")
            if (_runs(pid) and not is_first) or time.monotonic() > deadline:
                return _Holder(pid, Path(home.rstrip("\n")))
            # No event shows when it ends: the broker of a killed `up` still writes its file, or a command has looked
            # whether an `up` runs, and the id in the file is now that of another process.
            is_first = False
            time.sleep(_POLL)
        else:
            return None


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
