"""Interrupt the main thread of a worker's child while it waits in a call that does not return.

A host that sends nothing, or a store that does not answer, holds a job in a system call. Only a signal whose handler
raises ends such a call at once.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_SIGNAL = signal.SIGUSR2


class Interrupted(BaseException):
    """The wait was interrupted. It is no Exception, because SDKs take every Exception for a fault of the connection."""


class Interrupter:
    """Raises `Interrupted` in the thread that installed it, if that is the main thread; does nothing in another one."""

    def __init__(self) -> None:
        self._target: int | None = None
        self._before: Any = None
        self._unheard_since: float | None = None
        self._raises = False

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
        """Raise `Interrupted` in the main thread, from any other one.

        Returns the seconds for which that thread has heard no interrupt: a call to a hung disk hears none.
        """
        self._raises = True
        return self.listen()

    def listen(self) -> float:
        """Return the seconds for which the main thread has heard no signal, and send it one that does nothing else."""
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
            raise Interrupted


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt the block after so many seconds and raise TimeoutError; outside the main thread, do nothing."""
    interrupter = Interrupter()
    interrupter.install()
    timer = threading.Timer(seconds, interrupter.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Interrupted:
        raise TimeoutError(f"it took longer than {seconds:.0f} s") from None
    finally:
        timer.cancel()
        with suppress(Interrupted):
            timer.join()
            interrupter.remove()
