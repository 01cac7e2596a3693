"""Sockets that one thread shuts down while another one ends with them."""

import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from worker import watched_connections
from worker.watched_connections import WatchedSockets


@pytest.mark.parametrize("first", [WatchedSockets.shut_down, WatchedSockets.close])
@pytest.mark.parametrize("second", [WatchedSockets.shut_down, WatchedSockets.close])
def test_two_threads_may_end_sockets_at_once(
    first: Callable[[WatchedSockets], None], second: Callable[[WatchedSockets], None]
) -> None:
    """An attempt that fails as its time ends, or a download that is stopped as it connects, raises no other error."""
    for turn in range(1, 12):  # before each line of the first, the second has its turn
        sockets, made, lines = WatchedSockets(), socket.socket(), 0

        def before_line(frame: FrameType, event: str, _: object) -> Any:
            nonlocal lines
            if frame.f_code.co_filename != watched_connections.__file__:
                return None
            lines += event == "line"
            if event == "line" and lines == turn:  # noqa: B023 - called in this turn of the loop
                second(sockets)  # noqa: B023
            return before_line

        with made:
            sockets.watch(made)
            before = sys.gettrace()
            sys.settrace(before_line)
            try:
                first(sockets)
            finally:
                sys.settrace(before)
