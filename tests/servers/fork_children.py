"""Run a Python module, such as `up`, whose own children are forks of it too.

A fork of the fork server runs it as `tests.servers.fork_children MODULE ARGUMENTS`. The fork server cannot start these
children, because the module waits for them and gets their exit status. A child has the session, signals and streams
that the module asks for, and only its imports are done already. `ps` shows it with the command line of the fork server.
"""

import atexit
import gc
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.servers.fork_server import enter, run

HAVE_THREADS = frozenset({"celery"})
"""Modules that start processes while they have threads: their children need an `exec`, as a thread may hold a lock."""
_Popen = subprocess.Popen


class ForkingPopen(_Popen):  # type: ignore[type-arg]
    """`subprocess.Popen`, in which `python -m MODULE` is a fork of this process and never an `exec`."""

    def __init__(self, args: Sequence[str], **options: Any) -> None:
        if not isinstance(args, str) and [*map(str, args[:2])] == [sys.executable, "-m"]:
            module, prepare = [*map(str, args[2:])], options.get("preexec_fn")
            environment, kept = options.get("env") or dict(os.environ), options.get("pass_fds", ())
            options["preexec_fn"] = lambda: _run_as_child(module, environment, kept, prepare)
        super().__init__(args, **options)


def _run_as_child(
    arguments: Sequence[str], environment: Mapping[str, str], kept: Sequence[int], prepare: Callable[[], None] | None
) -> NoReturn:
    """Run a module where `Popen` would run a program.

    The streams and the working directory are those of the child already. It never returns to the frames of its parent,
    whose `finally` blocks are not its own.
    """
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if prepare:
            prepare()
        gc.enable()  # Popen has switched it off
        atexit._clear()
        enter(arguments, environment, str(Path.cwd()), kept)
        if arguments[0] in HAVE_THREADS:
            subprocess.Popen = _Popen  # type: ignore[misc]
        run(arguments[0])
    except BaseException:  # noqa: BLE001 - run does not return
        traceback.print_exc()
    finally:
        os._exit(1)


if __name__ == "__main__":
    del sys.argv[0]
    subprocess.Popen = ForkingPopen  # type: ignore[misc]
    run(sys.argv[0])
