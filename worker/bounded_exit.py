"""End a process that was told to end, although one of its threads does not.

Python waits at its end for every thread that is no daemon, without a limit: a thread in a call to a hung disk or host,
also one of a library, would keep a process that does nothing any more.
"""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""How long a process that has done its work waits for its threads."""
_LOG_WITHIN = 1.0
"""Seconds that a line of the log may take: a log that hangs must not keep the process either."""


def end_within(seconds: float = SECONDS, status: int = 0) -> None:
    """Return at once; end this process with `status` after `seconds`, if it has not ended by then.

    The log then names the threads that have not ended. Where no thread can be started, the process ends by SIGALRM.
    """
    try:
        threading.Thread(target=_log_threads, args=(seconds,), name="bounded-exit-log", daemon=True).start()
        threading.Thread(target=_end, args=(seconds + _LOG_WITHIN, status), name="bounded-exit", daemon=True).start()
    except RuntimeError:  # at the limit of processes, which may be why it ends
        signal.alarm(math.ceil(seconds + _LOG_WITHIN))


def end_after(seconds: float, reason: Callable[[], str]) -> None:
    """Return at once; after `seconds`, end this process with status 1 and `reason` in the log, if it is still there."""

    def end() -> None:
        time.sleep(seconds)
        threading.Thread(target=lambda: logger.error("the process ends now: %s", reason()), daemon=True).start()
        _end(_LOG_WITHIN, 1)

    threading.Thread(target=end, name="bounded-exit", daemon=True).start()


def end_within_after_signals(seconds: float = SECONDS) -> None:
    """Return at once; from now on SIGTERM and SIGINT also call `end_within`, besides what they do already."""
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def bounded(number: int, frame: FrameType | None, before: object = before) -> None:
            end_within(seconds)
            if callable(before):
                before(number, frame)

        signal.signal(number, bounded)


def _log_threads(seconds: float) -> None:
    """Log after `seconds` which threads Python would wait for, and where each of them is."""
    time.sleep(seconds)
    frames, left = sys._current_frames(), []  # noqa: SLF001 - documented for this
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if not thread.daemon and frame is not None:
            left.append(f"{thread.name} in {frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})")
    logger.error("the process ends although these threads have not: %s", ", ".join(left) or "none")


def _end(seconds: float, status: int) -> None:
    time.sleep(seconds)
    os._exit(status)
