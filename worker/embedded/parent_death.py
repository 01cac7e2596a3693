"""Send a process a signal when its parent dies, by whatever cause."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
"""Looked up here: to do so takes a lock, which another thread may have at a fork."""
_forked_by = [os.getppid()]
"""The process that forked this one: each process notes itself before it forks."""
os.register_at_fork(before=lambda: _forked_by.__setitem__(0, os.getpid()))


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when its parent dies. Does nothing where the kernel is not Linux.

    The kernel sends it at the end of the thread that forked this process, so that has to be a thread that does not end
    before its process. If the process that forked this one has died already, this one gets the signal now.
    It may run between fork and exec, because it takes no lock.
    """
    if _prctl is None:
        return
    _prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != _forked_by[0]:
        os.kill(os.getpid(), signum)
