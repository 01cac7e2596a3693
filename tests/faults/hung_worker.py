"""A worker whose disk hangs: `python -m tests.faults.hung_worker NAME …`, else as `celery …`.

Each access to an object of the filesystem store NAME is a call that no signal ends, as on a network disk that is away.
"""

import signal
import sys
import time
from typing import Any

HUNG_AFTER = 10.0
HUNG = "hung"
"""The file below the data directory that is there once a child hangs."""


def hang(store: str) -> None:
    """Put the call into the driver, before the worker forks, and let a call count as hung after seconds."""
    from worker.context import configured
    from worker.jobs import running_job
    from worker.storage.filesystem.driver import FilesystemDriver

    running_job._SILENT_AFTER, running_job._HUNG_AFTER = 1.0, HUNG_AFTER
    find = FilesystemDriver._find

    def find_or_hang(driver: Any, path: Any) -> Any:
        if driver.name == store:
            signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
            (configured().home / HUNG).touch()
            while True:
                time.sleep(1000)  # the fault: a call that does not return
        return find(driver, path)

    FilesystemDriver._find = find_or_hang  # type: ignore[method-assign]


if __name__ == "__main__":
    from celery.__main__ import main

    hang(sys.argv[1])
    sys.argv = ["celery", *sys.argv[2:]]
    main()
