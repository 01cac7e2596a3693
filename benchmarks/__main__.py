"""Measure what is promised: `python -m benchmarks [NAME …] [--quick] [--dir DIR]`."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError

from celery.exceptions import CeleryError

from benchmarks import latency, memory, memory_stores, stores, verifying
from benchmarks.machine import facts
from benchmarks.measured import NotMeasured, Row
from benchmarks.scene import Scene
from benchmarks.table import keep, markdown
from tests.servers import ServerFailed, ServerMissing, Valkey
from worker.storage.errors import StorageError
from zot_artifact_client import ClientError

MEASUREMENTS: dict[str, Callable[[Scene], list[Row]]] = {
    "latency": latency.measure,
    "verifying": verifying.measure,
    "memory": memory.measure_filesystem,
    "memory-s3": memory.measure_s3,
}
LONG: dict[str, Callable[[Scene], list[Row]]] = {"stores": stores.measure, "memory-stores": memory_stores.measure}
"""Only measured when they are named, and kept in tables of their own."""
ALL = MEASUREMENTS | LONG
_CHOICE = f"what to measure: {', '.join(MEASUREMENTS)} if nothing is named; {' or '.join(LONG)}, which take long"
_KEPT = [[], *([name] for name in LONG)]
"""Names of a full run whose table the README keeps."""
_OURS = (NotMeasured, ServerMissing, ServerFailed, ClientError, StorageError)
FAILURES = (*_OURS, CeleryError, CalledProcessError, OSError)


def main(arguments: list[str]) -> int:
    """Measure, print the table, and return 1 if something could not be measured; a missed target is no failure."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all servers end in order
    rows: list[Row] = []
    failed = False
    for name in options.names or MEASUREMENTS:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            rows += _measured(ALL[name], options)
        except FAILURES as error:
            print(f"{name} was not measured: {error}", file=sys.stderr)
            failed = True
    if rows:
        table = markdown(rows, facts(options.dir))
        print(table)
        if not (failed or options.quick) and options.names in _KEPT:
            keep(table, *options.names)
    return int(failed)


def _measured(measure: Callable[[Scene], list[Row]], options: argparse.Namespace) -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="zot-bench-", dir=options.dir, ignore_cleanup_errors=True) as directory,
        Valkey(Path(directory) / "valkey") as valkey,
    ):
        return measure(Scene(Path(directory), valkey, options.quick))


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what is promised.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=_CHOICE)
    parser.add_argument("--quick", action="store_true", help="a few minutes on smaller files, not kept in the README")
    parser.add_argument(
        "--dir", type=Path, default=Path(tempfile.gettempdir()), help="where to measure, with 20 GiB free (%(default)s)"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in ALL]
    if unknown:
        parser.error(f"there is no {unknown[0]!r} to measure, there are {', '.join(ALL)}")
    if not options.dir.is_dir():
        parser.error(f"--dir: {options.dir} is not a directory that exists")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
