"""Start the processes of a run as forks of the first one, which has imported the tests.

To import them takes four seconds of processor time. A process that starts as Python would spend them again.
"""

import atexit
import gc
import importlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import execnet
import pytest
from execnet import gateway_io

from tests.scheduling import files_of
from tests.servers.fork_server import run_to_end, separate_from_siblings
from tests.servers.forks import start_fork_servers, use_fork_server

_ROOT = Path(__file__).parents[1]


class ForkedProcess(gateway_io.Popen2IO):
    """The connection of execnet to a fork of this process, in place of one to a new Python.

    It is made before execnet has threads: another thread may have a lock at a fork, which the fork would never get.
    """

    remoteaddress = ""

    def __init__(self, others: Sequence["ForkedProcess"], fork_servers: list[socket.socket]) -> None:
        """Fork. The fork closes what belongs to the others, and uses the fork server that has its number."""
        stdin, to_stdin = os.pipe()
        from_stdout, stdout = os.pipe()
        self._status: int | None = None
        self.pid = os.fork()
        if not self.pid:
            try:
                os.dup2(stdin, 0)
                os.dup2(stdout, 1)
                for descriptor in (stdin, stdout, to_stdin, from_stdout):
                    os.close(descriptor)
                for other in others:  # a process would not see the end of a pipe that another one has open
                    other.outfile.close()
                    other.infile.close()
                for server in fork_servers[: len(others)] + fork_servers[len(others) + 1 :]:
                    server.close()
                _serve(fork_servers[len(others)])
            finally:
                os._exit(1)
        os.close(stdin)
        os.close(stdout)
        execmodel = execnet.gateway_base.get_execmodel("main_thread_only")  # as pytest-xdist asks for it
        super().__init__(os.fdopen(to_stdin, "wb"), os.fdopen(from_stdout, "rb"), execmodel)

    def wait(self) -> int:
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _serve(fork_server: socket.socket) -> NoReturn:
    """Do in a fork what a new Python does that execnet starts."""
    atexit._clear()
    use_fork_server(fork_server)
    separate_from_siblings()
    sys.argv[:] = ["-c"]
    sys.modules["__main__"] = ModuleType("__main__")  # multiprocessing imports the file of the main module again
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", 1, closefd=False)
    run_to_end(lambda: exec(gateway_io.popen_bootstrapline, {}))


def start_as_forks(specs: Sequence[execnet.XSpec]) -> None:
    """Let execnet use forks of this process, which has imported the tests, for the processes that it starts.

    A process that it starts later, because one has died, is a new Python.
    """
    if threading.active_count() > 1 or any(not spec.popen or spec.python for spec in specs):
        return
    gc.collect()
    gc.freeze()  # a fork would copy what a collection touches
    fork_servers = start_fork_servers(len(specs))
    forks = list[ForkedProcess]()
    for _ in specs:
        forks.append(ForkedProcess(forks, fork_servers))
    for server in fork_servers:
        server.close()
    start = gateway_io.create_io
    forks.reverse()

    def create_io(spec: execnet.XSpec, execmodel: Any) -> Any:
        return forks.pop() if forks else start(spec, execmodel)

    gateway_io.create_io = create_io


def hold_temporary_files() -> None:
    """Make a directory for the temporary files of a run, and remove it at the end of this process, its first one.

    Servers and killed workers leave some. Those of tests stay where pytest has them, which keeps three runs.
    """
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    for left in Path(tempfile.gettempdir()).glob("zot-run-*-*"):
        if not Path("/proc", left.name.split("-")[2]).exists():  # that run was killed
            shutil.rmtree(left, ignore_errors=True)
    first = os.getpid()
    directory = Path(tempfile.mkdtemp(prefix=f"zot-run-{first}-"))
    directory.chmod(0o711)  # some tests change their user
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)

    @atexit.register  # before that of the fork servers: it is called after them
    def remove() -> None:
        if os.getpid() == first:
            shutil.rmtree(directory, ignore_errors=True)


def import_tests(paths: Sequence[str]) -> None:
    """Import test files as pytest does. What cannot be imported, it imports again when it collects the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in files_of([path.partition("::")[0] for path in paths], 0, 1):
            with suppress(Exception, pytest.skip.Exception):
                importlib.import_module(".".join(Path(file).resolve().relative_to(_ROOT).with_suffix("").parts))
