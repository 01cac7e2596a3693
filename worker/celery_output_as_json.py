"""Make what Celery prints beside its log fit a log of JSON lines: banners, warnings, and notices of a shutdown."""

import logging
import os
import sys
import warnings
from typing import Any, TextIO

from celery import Celery, signals
from celery.apps import worker as celery_worker
from celery.apps.beat import Beat

from worker.log_lines import JsonFormatter


def print_only_json(app: Celery) -> None:
    """Make the worker and beat of an application print no banner, and warnings and notices as lines of JSON.

    Celery has no setting for it: `--quiet` would have to be in every unit file, and leaves the notices as they are.
    """
    warnings.showwarning = _show_warning  # until Celery sets up its log, which then gets the warnings
    app.Beat = app.subclass_with_self(_QuietBeat)
    signals.celeryd_init.connect(_without_banner, weak=False)


class _QuietBeat(Beat):  # type: ignore[misc]  # Celery has no types
    def run(self) -> None:
        self.quiet = True
        super().run()


def _without_banner(instance: Any, **_: Any) -> None:
    instance.quiet = True
    celery_worker.safe_say = _say


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    _write("py.warnings", f"{category.__name__}: {message}", None)


def _say(text: str, file: TextIO | None = None) -> None:
    _write("celery.apps.worker", text, file)


def _write(logger: str, text: str, file: TextIO | None) -> None:
    """Write one line, also in a signal handler: no logger, whose lock the interrupted code may hold."""
    record = logging.LogRecord(logger, logging.WARNING, "", 0, text.strip(), None, None)
    os.write((file or sys.__stderr__ or sys.stderr).fileno(), f"{JsonFormatter().format(record)}\n".encode())
