"""Start the command `zot-artifacts`: an interrupt ends it without a traceback from its first moment on."""

import gc
import signal

_GC_THRESHOLD = 100_000
"""New objects between two collections of garbage; Python's is 700. What a command imports stays to its end."""


def main() -> None:
    """Run the command of this command line, and exit with its status.

    The imports of a command take long enough to be interrupted, and would print a traceback then. The system's own
    action ends the process without one, with the same status 130 for a shell. A shell has an interrupt ignored for a
    command in the background, and that stays.
    """
    gc.set_threshold(_GC_THRESHOLD)
    python = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if python:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from worker.cli import main as run

    if python:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
