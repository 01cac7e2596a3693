"""A worker that dies at a given point: `python -m tests.faults.dying_worker DIRECTORY …`, else as `celery …`.

A file in that directory, named after a job's key, is an order: it says at which point the process that works on the job
dies, by SIGKILL, and is renamed at that moment, so that the next worker lives. An order may ask for another
misfortune in place of death: the clock jumps.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any, Literal

When = Literal["before", "after"]

_STUNNED = 3.0
"""Seconds for which a job waits after its clock has jumped: longer than a lease, so that other workers check it."""

POINTS: Mapping[str, tuple[str, When]] = {
    "received, not begun": ("worker.catalogue.ledger:Ledger.acquire", "before"),
    "begun, still in the outbox": ("worker.jobs.running_job:RunningJob.__enter__", "before"),
    "begun, out of the outbox": ("worker.jobs.progress:CeleryReporter.report", "after"),
    "source not opened": ("tasks.upload:open_source", "before"),
    "staged parts not read": ("tasks.upload:assembled", "before"),
    "a staged part removed": ("worker.storage.store:Store.delete_object", "after"),
    "version recorded": ("worker.catalogue.artifacts:Artifacts.record", "after"),
    "file written, not placed": ("worker.storage.filesystem.temp_files:TempFile.link", "before"),
    "file written, not swapped in": ("worker.storage.filesystem.temp_files:TempFile.rename", "before"),
    "parts begun, not noted": ("worker.jobs.upload_checkpoint:CopyCheckpoint.begun", "before"),
    "at a part": ("worker.storage.s3.upload:Upload.send_part", "before"),
    "part sent, not noted": ("worker.jobs.upload_checkpoint:CopyCheckpoint.sent", "before"),
    "all parts sent": ("worker.storage.s3.upload:Upload.complete", "before"),
    "completed, still noted as open": ("worker.jobs.upload_checkpoint:CopyCheckpoint.ended", "before"),
    "copied by the provider, not read": ("worker.storage.store:Store.copy_object", "after"),
    "bad bytes in quarantine": ("worker.storage.store:Store.quarantine_object", "after"),
    "written, not recorded": ("worker.artifacts.artifact_copies:ArtifactJob._record_copy", "before"),
    "copy recorded": ("worker.artifacts.artifact_copies:ArtifactJob._record_copy", "after"),
    "read, not recorded": ("worker.catalogue.verifications:Verifications.record", "before"),
    "verdict recorded": ("worker.catalogue.verifications:Verifications.record", "after"),
    "deleted, still in the catalogue": ("worker.catalogue.artifacts:Artifacts.delete_copies", "before"),
    "deleted in the catalogue": ("worker.catalogue.artifacts:Artifacts.delete_copies", "after"),
    "all copies deleted": ("worker.catalogue.artifacts:Artifacts.tombstone", "before"),
    "buried": ("worker.catalogue.artifacts:Artifacts.tombstone", "after"),
    "planned, not sent": ("worker.jobs.outbox:Outbox.send", "before"),
    "next attempt not sent": ("worker.jobs.task:Delivery._again", "before"),
    "done, not finished": ("worker.catalogue.ledger:Ledger.finish", "before"),
    "finished": ("worker.catalogue.ledger:Ledger.finish", "after"),
    "half cleaned up": ("pathlib:Path.rmdir", "before"),
    "result shown": ("celery.backends.base:Backend.mark_as_done", "after"),
}
"""Every point at which a process can be told to die: a call, and on which side of it."""
_WRITES = ("upload", "replicate", "delete")
_ALL = ("verify", "adopt", *_WRITES)
PAGE_POINTS: Mapping[str, tuple[str, When, tuple[str, ...]]] = {
    "page received": ("worker.artifacts.page_selection:select", "before", ("verify", "replicate", "delete")),
    "page begun": ("worker.catalogue.pages:Pages.begin", "after", _ALL),
    "artifacts locked": ("worker.catalogue.artifact_locks:ArtifactLocks.acquire", "after", ("adopt", *_WRITES)),
    "copies begun": ("worker.catalogue.artifacts:Artifacts.ensure_copies", "after", ("replicate",)),
    "versions recorded": ("worker.catalogue.artifacts:Artifacts.record_many", "after", ("upload",)),
    "object written": ("worker.storage.store:Store.write_object", "after", ("replicate",)),
    "objects written": ("worker.storage.store:Store.write_objects", "after", ("upload",)),
    "object deleted": ("worker.storage.store:Store.delete_object", "after", ("delete",)),
    "group not recorded": ("worker.catalogue.pages:Pages.record", "before", _WRITES),
    "group recorded": ("worker.catalogue.pages:Pages.record", "after", _WRITES),
    "objects not adopted": ("worker.catalogue.pages:Pages.adopt", "before", ("adopt",)),
    "objects adopted": ("worker.catalogue.pages:Pages.adopt", "after", ("adopt",)),
    "verdicts not recorded": ("worker.catalogue.pages:VerdictRecorder.add", "before", ("verify",)),
    "verdicts recorded": ("worker.catalogue.pages:VerdictRecorder.add", "after", ("verify",)),
    "verdicts not flushed": ("worker.catalogue.database:Database.flush", "before", ("verify",)),
    "artifacts not released": (
        "worker.catalogue.artifact_locks:ArtifactLocks.release",
        "before",
        ("upload", "delete", "adopt"),
    ),
    "page not finished": ("worker.catalogue.ledger:Ledger.finish", "before", _ALL),
    "page finished": ("worker.catalogue.ledger:Ledger.finish", "after", _ALL),
}
"""The points of a page, and the verbs whose pages pass them."""


POINTED: Mapping[str, str] = {point: target for point, (target, *_) in (*POINTS.items(), *PAGE_POINTS.items())}
"""The call of each point."""


class Death:
    """Carries out the orders in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key: str | None = None  # of the job at work; a process has one at a time, in whatever threads
        self._passed: Counter[str] = Counter()
        self._freezes = False
        self._calls = threading.RLock()
        """Held in each call of a store by a job that is to freeze: frozen in one, it would keep a file locked."""

    def at(self, point: str) -> None:
        """Die if the job at work is to die here, now."""
        order = self._order()
        if order is None or order["at"] != point:
            return
        self._passed[point] += 1
        if self._passed[point] <= order["skip"]:
            return
        self._path.rename(self._path.with_suffix(".died"))
        if order.get("freeze"):
            with self._calls:
                self._path.with_suffix(".frozen").write_text(str(os.getpid()))
                _freeze(order["freeze"])
            return
        if order.get("lock"):
            _keep_locked(order["lock"])
            return
        if order["clock"] is not None:
            (self._directory / "clock.new").write_text(str(order["clock"]))
            (self._directory / "clock.new").rename(self._directory / "clock")
            time.sleep(_STUNNED)  # the fault: the job pauses for longer than its lease
            return
        if order["whole"]:
            os.killpg(0, signal.SIGKILL)  # the worker, its other children and its beat: as when a machine fails
        os.kill(os.getpid(), signal.SIGKILL)

    def working_on(self, handle: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap what takes up a delivery, so that it is known whose job is at work."""

        @wraps(handle)
        def handled(delivery: Any, work: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
            listed = (kwargs.get("listed") or {}).get("batch", "")
            page = (kwargs.get("range") or {}).get("prefix", "").rstrip("/") or listed
            self._key, self._passed = kwargs.get("key") or kwargs.get("prefix") or page, Counter()
            self._freezes = bool((self._order() or {}).get("freeze"))
            return handle(delivery, work, args, kwargs)  # what is left to do for the job after that is still its own

        return handled

    def here(self, point: str, when: When, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a call on one side of which a process may have to die."""

        @wraps(call)
        def called(*args: Any, **options: Any) -> Any:
            if when == "before":
                self.at(point)
            with self._calls if self._freezes and ":Store." in POINTED[point] else nullcontext():
                result = call(*args, **options)
            if when == "after":
                self.at(point)
            return result

        return called

    def trouble(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a call that fails at first, in the way that the order names, for jobs that are to die after that."""
        from worker.jobs.running_job import Requeue
        from worker.limits.snooze import Snooze
        from worker.storage.errors import Unavailable

        troubles: dict[str, Exception] = {
            "fault": Unavailable("the source does not answer"),
            "busy": Snooze("the store is busy", 0.2),
            "ending": Requeue("the worker is ending"),
        }

        @wraps(call)
        def called(*args: Any, **options: Any) -> Any:
            order = self._order()
            if order is not None and order["meets"] == "silence":
                threading.Event().wait(_STUNNED)  # until a heartbeat shows that the job runs, and it dies
            elif order is not None and order["meets"]:
                raise troubles[order["meets"]]
            return call(*args, **options)

        return called

    def counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a full read, so that it is on the record of the test that there was one."""

        @wraps(call)
        def called(store: Any, bucket: str, key: str, *args: Any, **options: Any) -> Any:
            seen = call(store, bucket, key, *args, **options)
            with (self._directory / "reads").open("a") as file:
                file.write(f"{store.name} {key}\n")
            return seen

        return called

    def jumping(self, now: Callable[[], datetime]) -> Callable[[], datetime]:
        """Wrap the worker's one clock, so that it goes wrong in all processes at once."""

        @wraps(now)
        def called() -> datetime:
            try:
                ahead = float((self._directory / "clock").read_text())
            except FileNotFoundError:
                ahead = 0.0
            return now() + timedelta(seconds=ahead)

        return called

    @property
    def _path(self) -> Path:
        return self._directory / f"{self._key}.order"

    def _order(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._path.read_text()) if self._key else None
        except FileNotFoundError:
            return None


def _keep_locked(catalogue: str) -> None:
    """Let another program keep the catalogue locked for longer than a lease."""
    locking = _with_the_lock(catalogue, "print('locked', flush=True); time.sleep(4)", stdout=subprocess.PIPE)
    assert locking.stdout is not None
    locking.stdout.readline()


def _freeze(catalogue: str) -> None:
    """Let another program stop this process while that has the lock of the catalogue.

    A thread of this process, such as the one that renews the lease, would else be stopped with the lock now and then,
    and no other process could write before this one wakes up. It keeps the lock until all threads are stopped, which on
    a busy machine is later than the signal.
    """
    threads = f"/proc/{os.getpid()}/task"
    state = f"open(f'{threads}/{{thread}}/stat').read().rpartition(') ')[2][0]"
    stop = (
        f"os.kill({os.getpid()}, signal.SIGSTOP)\n"
        f"while any({state} not in 'Tt' for thread in os.listdir('{threads}')): time.sleep(0.02)"
    )
    _with_the_lock(catalogue, stop).wait()


def _with_the_lock(catalogue: str, what: str, **options: Any) -> subprocess.Popen[bytes]:
    """Run lines of Python in a process that has the write lock of a SQLite file."""
    code = (
        "import os, signal, sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)\n"
        f"c.execute('BEGIN IMMEDIATE')\n{what}\nc.execute('ROLLBACK')"
    )
    return subprocess.Popen([sys.executable, "-c", code, catalogue], **options)


def wrap(target: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put something around a function or method, named as `module:Class.method`."""
    module, _, path = target.partition(":")
    *parents, name = path.split(".")
    owner = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, wrapper(getattr(owner, name)))


def prepare(directory: Path) -> None:
    """Put the points into the worker's code, before it forks."""
    from worker.app import TASK_MODULES

    for module in TASK_MODULES:
        importlib.import_module(module)
    death = Death(directory)
    wrap("worker.jobs.task:Delivery.handle", death.working_on)
    wrap("worker.storage.store:Store.verify_object", death.counting)
    wrap("tasks.upload:open_source", death.trouble)
    wrap("worker.clock:now", death.jumping)
    for point, (target, when) in POINTS.items():
        wrap(target, lambda call, point=point, when=when: death.here(point, when, call))
    for point, (target, when, _) in PAGE_POINTS.items():
        wrap(target, lambda call, point=point, when=when: death.here(point, when, call))
    for module in ("worker.artifacts.page_runner", "tasks.pages.upload"):
        importlib.import_module(module).GROUP = 5  # so that a small page has several groups


if __name__ == "__main__":
    from celery.__main__ import main

    prepare(Path(sys.argv[1]))
    sys.argv = ["celery", *sys.argv[2:]]
    main()
