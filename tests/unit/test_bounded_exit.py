"""A process that has done its work ends, although a thread does not."""

import signal
import subprocess
import sys

import pytest

_HUNG = """
import logging, signal, sys, threading, time
from worker.bounded_exit import end_after, end_within, end_within_after_signals
logging.basicConfig()
threading.Thread(target=threading.Event().wait, name="hung-disk").start()
"""


def test_a_thread_that_does_not_end_keeps_no_process() -> None:
    """The process ends in time with its status, and the log names the thread; also where no thread can be started."""
    script = f"{_HUNG}\nend_within(0.1, 3)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert "hung-disk in wait (" in done.stderr
    assert done.stderr.count("\n") == 1
    script = (
        f"{_HUNG}\nimport resource\nresource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        "threading.stack_size(2**33)\nend_within(0.1, 3)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGALRM, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_bounds_the_end_of_a_process(number: signal.Signals) -> None:
    """The handler that was there runs first; what it does not end, ends in time."""
    handler = "lambda *_: print('handled', flush=True)"
    script = f"{_HUNG}\nsignal.signal({number:d}, {handler})\nend_within_after_signals(0.1)\nprint('ready', flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "handled\n"
        assert process.wait(60) == 0


def test_a_process_that_does_not_end_after_its_signal_is_ended() -> None:
    """The log has the reason, as it is at that time."""
    script = f"{_HUNG}\nwhy = []\nend_after(0.1, why.pop)\nwhy.append('it hangs')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "the process ends now: it hangs" in done.stderr
