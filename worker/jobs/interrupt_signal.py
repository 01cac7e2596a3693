"""Interrupt the main thread of a worker's child while it waits in a call that does not return.

A host that sends nothing, or a store that does not answer, holds a job in a system call. Only a signal whose handler
raises ends such a call at once.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNAL = signal.SIGUSR2
CLEAN_UP = 2.5
"""Seconds between two exceptions: the requests that clean up after the first one must not be interrupted at once."""
_AGAIN = 0.5
"""Seconds between two interrupts of `at_most`."""


class Interrupted(BaseException):
    """The wait was interrupted. It is no Exception, because SDKs take every Exception for a fault of the connection."""


class Interrupter:
    """Raises `Interrupted` in the thread that installed it, if that is the main thread; does nothing in another one.

    Python drops an exception that is raised in a weakref callback or in `__del__`. So the caller interrupts again and
    again until its call has returned.
    """

    def __init__(self) -> None:
        self._target: int | None = None
        self._before: Any = None
        self._unheard_since: float | None = None
        self._raises = False
        self._raised_at: float | None = None

    def install(self) -> None:
        """Install the signal handler."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(_SIGNAL, self._raise)
            self._target = threading.main_thread().ident

    def remove(self) -> None:
        """Restore the signal handler that was there before."""
        if self._target is not None:
            self._target = None
            signal.signal(_SIGNAL, self._before)

    def interrupt(self) -> float:
        """Raise `Interrupted` in the main thread, from any other one; at most once in `CLEAN_UP` seconds.

        Returns for how many seconds that thread has not handled an interrupt: a call to a hung disk handles none.
        """
        self._raises = self._raised_at is None or time.monotonic() - self._raised_at >= CLEAN_UP
        return self.listen()

    def listen(self) -> float:
        """Return for how many seconds the main thread has handled no signal, and send it one without other effect."""
        target = self._target
        if target is None:
            return 0.0
        now = time.monotonic()
        if self._unheard_since is None:
            self._unheard_since = now
        since = self._unheard_since
        signal.pthread_kill(target, _SIGNAL)
        return now - since

    def _raise(self, _number: int, _frame: FrameType | None) -> None:
        self._unheard_since = None
        if self._raises:
            self._raises = False
            self._raised_at = time.monotonic()
            raise Interrupted


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt the block after so many seconds and raise TimeoutError; outside the main thread, do nothing."""
    interrupter, ended = Interrupter(), threading.Event()

    def watch() -> None:
        wait = seconds
        while not ended.wait(wait):
            interrupter.interrupt()
            wait = _AGAIN

    interrupter.install()
    watcher = threading.Thread(target=watch, name="at most", daemon=True)
    watcher.start()
    try:
        yield
    except Interrupted:
        raise TimeoutError(f"it took longer than {seconds:.0f} s") from None
    finally:
        try:
            ended.set()
            watcher.join()
        except Interrupted:  # sent just before the end; the next one is far away
            ended.set()
            watcher.join()
        interrupter.remove()
