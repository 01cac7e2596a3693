"""Work in a process of its own that is killed at each of its steps."""

import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

MOST = 300


def killed_at(number: int, work: Callable[[], Any], at: Sequence[tuple[Any, Sequence[str]]]) -> bool:
    """Do the work in a process that is killed before its step of this number; return whether it came so far.

    The steps are the calls of functions and methods, given as what has them and their names.
    """
    child = os.fork()
    if child == 0:
        gc.disable()  # a collection would copy all that this process shares with its parent
        passed = 0

        def step(plain: Callable[..., Any]) -> Callable[..., Any]:
            def killing(*args: Any, **named: Any) -> Any:
                nonlocal passed
                passed += 1
                if passed == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return plain(*args, **named)

            return killing

        for of, names in at:
            for name in names:
                setattr(of, name, step(getattr(of, name)))
        try:
            work()
        except BaseException:  # noqa: BLE001 - the parent asserts
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def steps(work: Callable[[int], Callable[[], Any]], at: Sequence[tuple[Any, Sequence[str]]]) -> Iterator[int]:
    """Kill fresh work at each of its steps, and yield the number of each, until it ends before it is killed."""
    for number in range(1, MOST):
        if not killed_at(number, work(number), at):
            return
        yield number
    raise AssertionError(f"it has more than {MOST} steps")
