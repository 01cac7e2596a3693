"""Start a server on a free loopback port, wait until it answers, and end it even if this process is killed."""

import os
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, Self

from tools.environments import InstallFailed, make_server_environment
from worker.embedded.parent_death import die_with_parent

REPOSITORY = Path(__file__).parents[2]
READY_WITHIN = 240.0
"""Seconds: the slowest of them answers after about two on an idle machine, and a busy one is no fault."""
STOPPED_WITHIN = 60.0
POLL = 0.02
PORTS_TRIED = 3


class ServerMissing(Exception):
    """The server's program is not installed here."""


class ServerFailed(Exception):
    """The server ended, or did not answer in time; carries the end of its log."""


def server_environment(name: str) -> Path:
    """Return the directory of a server's environment, which is made when it is first needed.

    Raises:
        ServerMissing: it cannot be made; the message says why.
    """
    try:
        return make_server_environment(name)
    except InstallFailed as error:
        raise ServerMissing(f"The test server {name} is not installed. {error}") from error


def find_server(name: str, program: str | None = None) -> str:
    """Return the path of a server's program, by default one that is named like it.

    Raises:
        ServerMissing: it cannot be installed; the message says why.
    """
    directory = server_environment(name) / "bin"
    found = shutil.which(program or name, path=str(directory))
    if found is None:
        raise ServerMissing(f"{directory} has no program {program or name}: the package has none for this platform")
    return found


def free_port() -> int:
    """Return a loopback port without a listener at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process(Protocol):
    """A started process, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class Server(ABC):
    """One server process, a context manager. Subclasses say how it is started and when it is ready.

    Attributes:
        directory: where it keeps its data and its log; made if needed, left in place.
        port: the loopback port, the same after a restart.
    """

    name = "server"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self._process: Process | None = None

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return the program and its arguments; `port` and `directory` are set, and the directory is there."""

    def environment(self) -> Mapping[str, str]:
        return {}

    def probe(self) -> None:
        """Return when the server answers; raise OSError while it does not."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1):
            pass

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start on a free port and return when the server answers.

        Raises:
            ServerMissing: it is not installed.
            ServerFailed: it does not come up.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        for attempt in range(PORTS_TRIED):
            self.port = free_port()
            try:
                self._spawn()
            except ServerFailed:  # another process may have taken the port since it was found free
                if attempt + 1 == PORTS_TRIED:
                    raise
            else:
                return self
        raise AssertionError

    def kill(self) -> None:
        """End the server as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server in order, or by force when it takes longer than STOPPED_WITHIN."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start again on the same port and the same data; a server that still runs is killed first."""
        self.kill()
        self._spawn()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _spawn(self) -> None:
        with self._log_path.open("ab") as log:
            self._process = self._start(log.fileno())
        self._await_ready()

    def _start(self, log: int) -> Process:
        return subprocess.Popen(  # own session: a Ctrl-C in the terminal ends the tests, they end the server
            self.command(),
            cwd=self.directory,
            env={**os.environ, **self.environment()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - there is no other way to ask for it on behalf of a child
        )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN
        while self.running and time.monotonic() < deadline:
            try:
                self.probe()
            except OSError:
                time.sleep(POLL)  # a listening socket sends no event, so it has to be polled
            else:
                if self.running:
                    return
        self.kill()
        raise ServerFailed(f"{self.name} did not answer on port {self.port}; its log ends with:\n{self._log_tail()}")

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            with suppress(ProcessLookupError):  # it has ended since, and who started it has noticed
                os.killpg(self._process.pid, how)
        try:
            self._process.wait(timeout=STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def _log_path(self) -> Path:
        return self.directory / f"{self.name}.log"

    def _log_tail(self) -> str:
        return self._log_path.read_text(errors="replace")[-2000:]


def freeze(*pids: int) -> None:
    """Stop processes by SIGSTOP, and return once every thread of them is stopped.

    The kernel stops a process when one of its threads is next scheduled. On a busy machine its other threads still
    answer requests, or take a lock, for that long. A process that has ended meanwhile is left out.
    """
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        with suppress(ProcessLookupError, FileNotFoundError):
            while any(_state(thread) not in "TtZX" for thread in Path(f"/proc/{pid}/task").iterdir()):
                time.sleep(POLL)


def thaw(*pids: int) -> None:
    """Let processes go on that `freeze` has stopped."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Freeze processes for a while."""
    try:
        freeze(*pids)
        yield
    finally:
        thaw(*pids)


def _state(thread: Path) -> str:
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
