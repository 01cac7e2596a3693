"""The time of one attempt to deliver, whatever a receiver sends meanwhile."""

import socket
import threading
from contextlib import suppress
from typing import Self


class AttemptTime:
    """Shuts the connections of an attempt down once it has taken too long; a context manager.

    The timeout of a socket is for each single read: a receiver that sends a byte now and then would hold the attempt,
    and all alarms behind it, for days.
    """

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def watch(self, made: socket.socket) -> socket.socket:
        """Return a new connection, which ends with the time of the attempt."""
        self._sockets.append(made.dup())  # a duplicate: TLS detaches the original
        if self.is_over:
            self._end()
        return made

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for each in self._sockets:
            each.close()

    def _end(self) -> None:
        self.is_over = True
        for each in self._sockets:
            with suppress(OSError):  # closed meanwhile
                each.shutdown(socket.SHUT_RDWR)
