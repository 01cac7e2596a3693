"""End a process that was told to end, although one of its threads does not.

Python waits at its end for every thread that is no daemon, without a limit: a thread in a call to a hung disk or host,
also one of a library, would keep a process that does nothing any more.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""For which a process that has done its work waits for its threads."""
_LOG_WITHIN = 1.0


def end_within(seconds: float = SECONDS, status: int = 0) -> None:
    """End this process after so many seconds if it has not ended by itself by then; return at once."""
    # Each in a thread of its own, because a log that hangs must not keep the process either.
    threading.Thread(target=_tell, args=(seconds,), name="bounded-exit-log", daemon=True).start()
    threading.Thread(target=_end, args=(seconds + _LOG_WITHIN, status), name="bounded-exit", daemon=True).start()


def end_unless(ends: Callable[[], bool], seconds: float, reason: str) -> None:
    """End this process after so many seconds, with `reason` in the log, unless it is ending by then; return at once."""

    def check() -> None:
        time.sleep(seconds)
        if not ends():
            threading.Thread(target=logger.error, args=("the process ends now: %s", reason), daemon=True).start()
            _end(_LOG_WITHIN, 1)

    threading.Thread(target=check, name="bounded-exit", daemon=True).start()


def end_within_after_signals(seconds: float = SECONDS) -> None:
    """Have SIGTERM and SIGINT do what they do now, and end this process after so many seconds."""
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def bounded(number: int, frame: FrameType | None, before: object = before) -> None:
            end_within(seconds)
            if callable(before):
                before(number, frame)

        signal.signal(number, bounded)


def _tell(seconds: float) -> None:
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
