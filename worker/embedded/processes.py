"""Child processes that never outlive this one, and that are restarted when they end by themselves."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from worker.embedded.parent_death import die_with_parent

_STOP = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_FIRST_DELAY = 1.0
_LONGEST_DELAY = 60.0
_FIRST_PROCESS = 1
"""The id of the first process of a container."""
_SETTLED = 60.0
"""Seconds after which a start counts as successful."""


_FILES = 256
"""What a worker may have open: files, and connections to stores, broker and catalogue, for each thread of a page."""
_MORE_FILES = "raise it (`ulimit -n 1024`, or LimitNOFILE of a systemd unit)"
_WAYS_OUT = {
    errno.EMFILE: f"; that is the limit of open files: {_MORE_FILES}",
    errno.EAGAIN: "; raise the limit of processes (`ulimit -u`, or that of the container)",
    errno.ENOMEM: "; free memory",
}


def too_few_files() -> str | None:
    """Return that this process, and each that it starts, may have too few files open, and the way out; else None."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= _FILES:
        return None
    return f"the limit of open files is {limit}, and a worker needs {_FILES}: {_MORE_FILES}"


class CannotStart(Exception):
    """The system does not start a program; the message names it and says why."""


class StopRequested(Exception):
    """SIGINT, SIGTERM or SIGHUP arrived."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program to run.

    Attributes:
        name: for people, and for its log.
        command: program and arguments; nothing secret.
        environment: added to that of this process.
        orphaned: the signal that the kernel sends it when this process dies.
        grace: seconds that it has after SIGTERM.
        keep: file descriptors that stay open in it.
        prepare: called before each start.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    orphaned: signal.Signals = signal.SIGKILL
    grace: float = 10.0
    keep: tuple[int, ...] = ()
    prepare: Callable[[], None] = lambda: None


class _Child:
    """A running program: its process, and its failures in a row."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program = program
        self.log = log
        self.failures = 0
        self.due: float | None = None
        """When it is restarted, if it has ended."""
        self.start()

    def start(self) -> None:
        """Start the program.

        Raises:
            CannotStart: the system does not start it.
            OSError: its log cannot be opened, or what `prepare` does fails.
        """
        self.started = time.monotonic()
        self.program.prepare()
        with self.log.open("ab") as log:
            try:
                # A session of its own: Ctrl-C in the terminal reaches only this process, which stops them in order.
                self.process = subprocess.Popen(
                    self.program.command,
                    cwd=self.log.parent,  # elsewhere, Celery would import a package `worker` or `tasks` from there
                    env={**os.environ, **self.program.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=self.program.keep,
                    preexec_fn=_bound_to_parent(self.program.orphaned),  # noqa: PLW1509 - there is no other thread
                )
            except OSError as error:
                of = f"{error.filename}: " if error.filename is not None else ""
                way_out = _WAYS_OUT.get(error.errno or 0, "")
                raise CannotStart(f"{self.program.name} cannot be started: {of}{error.strerror}{way_out}") from error
        self.due = None

    def fail(self) -> float:
        """Record that it has ended, and return the seconds until it is restarted."""
        lived = time.monotonic() - self.started
        self.failures = 1 if lived > _SETTLED else self.failures + 1
        delay = min(_FIRST_DELAY * float(2 ** min(self.failures - 1, 10)), _LONGEST_DELAY)
        self.due = time.monotonic() + delay
        return delay


class Children:
    """The running programs, a context manager: at its end all are stopped, the last one first.

    Only the main thread may use it: the kernel ties the children's lives to the thread that started them, and the
    awaited signals are blocked meanwhile.
    """

    def __init__(self, logs: Path, say: Callable[[str], None]) -> None:
        self._logs = logs
        self._say = say
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> Self:
        # As nohup leaves it, SIGHUP is ignored; blocked, it would arrive all the same.
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        self._awaited = (_STOP | {signal.SIGCHLD}) - ignored
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for name in reversed(list(self._children)):
            self.stop(name)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def start(self, program: Program) -> None:
        """Start a program; its output goes to the end of its log.

        Raises:
            CannotStart: the system does not start it.
            OSError: its log cannot be opened, or what `prepare` does fails.
        """
        self._children[program.name] = _Child(program, self._logs / f"{program.name}.log")

    def pid(self, name: str) -> int | None:
        """Return the process id of a program that was started; None once it has ended, until it is restarted."""
        process = self._children[name].process
        return process.pid if process.poll() is None else None

    def wait(self, seconds: float) -> None:
        """Wait this long; a program that ends meanwhile is restarted with exponential backoff, until it starts.

        Raises:
            StopRequested: SIGINT, SIGTERM or SIGHUP arrived.
        """
        deadline = time.monotonic() + seconds
        while True:
            self._restart()
            due = [child.due for child in self._children.values() if child.due is not None]
            left = min([deadline, *due]) - time.monotonic()
            got = signal.sigtimedwait(self._awaited, max(left, 0))
            if got is not None and got.si_signo in _STOP:
                raise StopRequested
            if time.monotonic() >= deadline:
                return

    def rotate(self, size: int, keep: int) -> None:
        """Begin a new log for each program whose log has more than `size` bytes, and keep the last `keep` logs.

        The programs hold the file open and append to it, so it is copied and emptied; a line that is written between
        the two is lost.
        """
        for log in dict.fromkeys(child.log for child in self._children.values()):
            try:
                if log.stat().st_size <= size:
                    continue
                earlier = [log.with_name(f"{log.name}.{number}") for number in range(1, keep + 1)]
                for older, newer in zip(reversed(earlier), reversed(earlier[:-1]), strict=False):
                    if newer.exists():
                        newer.replace(older)
                shutil.copyfile(log, earlier[0])
                os.truncate(log, 0)
            except OSError as error:
                self._say(f"{log} cannot be rotated: {error.strerror}")

    def stop(self, *names: str) -> None:
        """Stop these programs at once, and kill those that take longer than their grace."""
        ending = [child for name in names if (child := self._children.pop(name, None))]
        for child in ending:
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + max((child.program.grace for child in ending), default=0)
        while any(_alive(ending)) and (left := deadline - time.monotonic()) > 0:
            got = signal.sigtimedwait(self._awaited, left)
            if got is not None and got.si_signo in _STOP:
                self._say("second signal: killing what still runs")
                break
        else:
            for child in _alive(ending):
                self._say(f"{child.program.name} did not end within its grace period and is killed")
        for child in _alive(ending):
            _signal(child, signal.SIGKILL)
        for child in ending:
            child.process.wait()

    def _restart(self) -> None:
        for child in self._children.values():
            status = child.process.poll()
            if status is not None and child.due is None:
                how = f"status {status}" if status >= 0 else signal.Signals(-status).name
                delay = child.fail()
                self._say(
                    f"{child.program.name} ended by itself ({how}) and is restarted in {delay:.0f} s; see {child.log}"
                )
            elif child.due is not None and time.monotonic() >= child.due:
                try:
                    child.start()
                except (CannotStart, OSError) as error:  # it may pass, and the other programs are well
                    told = str(error) if isinstance(error, CannotStart) else f"{child.program.name}: {error}"
                    self._say(f"{told}; tried again in {child.fail():.0f} s")
        if os.getpid() == _FIRST_PROCESS:
            self._reap_orphans()

    def _reap_orphans(self) -> None:
        """Reap what the kernel gives to the first process of a container: others' children, whose parents died."""
        ours = {child.process.pid for child in self._children.values()}
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        with suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, options)) is not None and ended.si_pid not in ours:
                os.waitpid(ended.si_pid, 0)


def _alive(children: Iterable[_Child]) -> list[_Child]:
    return [child for child in children if child.process.poll() is None]


def _signal(child: _Child, signum: signal.Signals) -> None:
    if child.process.poll() is None:
        child.process.send_signal(signum)


def _bound_to_parent(signum: signal.Signals) -> Callable[[], None] | None:
    """Return what a child runs before its program: it dies with its parent, and its signals are unblocked."""

    def prepare() -> None:
        die_with_parent(signum)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    return prepare if sys.platform == "linux" else None
