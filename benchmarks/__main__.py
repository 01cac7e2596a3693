"""Measure speed and memory: `python -m benchmarks [NAME …] [--quick] [--pairs N] [--only WORDS] [--dir DIR]`."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks import (
    batch_planning,
    beside_sweep,
    canary_repair,
    catalogue_queries,
    enqueue,
    gateway_clients,
    grouped_verdicts,
    latency,
    memory,
    memory_by_store,
    memory_growth,
    rebuild,
    reconciling,
    resent_parts,
    small_objects_in_clouds,
    startup,
    store_transfers,
    sweep,
    sweep_paging,
    takeover,
    throughput,
    upload_dir,
    verifying,
)
from benchmarks.harness.machine import facts
from benchmarks.harness.result_rows import FAILURES, Line, Missing, NotMeasured
from benchmarks.harness.table import brief, exchange, keep, markdown
from benchmarks.harness.testbed import Testbed, spread
from tests.servers import Valkey

MEASUREMENTS: dict[str, Callable[[Testbed], Iterable[Line]]] = {
    "latency": latency.measure,
    "throughput": throughput.measure,
    "enqueue": enqueue.measure,
    "verifying": verifying.measure,
    "sweep": sweep.measure,
    "beside-sweep": beside_sweep.measure,
    "memory": memory.measure_filesystem,
    "memory-s3": memory.measure_s3,
    "memory-growth": memory_growth.measure,
    "resent-parts": resent_parts.measure,
    "takeover": takeover.measure,
    "batch-planning": batch_planning.measure,
    "sweep-paging": sweep_paging.measure,
    "rebuild": rebuild.measure,
}
LONG: dict[str, Callable[[Testbed], Iterable[Line]]] = {
    "stores": store_transfers.measure,
    "memory-stores": memory_by_store.measure,
    "upload-dir": upload_dir.measure,
    "reconcile": reconciling.measure,
    "verify-stores": small_objects_in_clouds.measure_verify,
    "replicate": small_objects_in_clouds.measure_replicate,
    "canary": canary_repair.measure,
    "catalogue": catalogue_queries.measure,
    "verdicts": grouped_verdicts.measure,
    "startup": startup.measure,
    "clients": gateway_clients.measure,
}
"""Only measured when they are named, and kept in tables of their own."""
ALL = MEASUREMENTS | LONG
_CHOICE = f"what to measure: {', '.join(MEASUREMENTS)} if nothing is named; {' or '.join(LONG)}, which take long"
_ONLY = f"of {' or '.join(LONG)}, only lines with these words, such as 'azure' or 's3 (ministack): get 1 GiB'"
_KEPT = [[], *([name] for name in LONG)]
"""Names of a full run whose table the README keeps."""


def main(arguments: list[str]) -> int:
    """Measure, print the table, and return 1 if a line could not be measured; a missed target is no failure.

    Each line is printed as soon as it is measured. The table has all lines until then, whatever ends the run.
    """
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all servers end in order
    lines: list[Line] = []
    try:
        for line in _measured(options):
            print(f"  {time.strftime('%H:%M:%S')} {brief(line)}", file=sys.stderr, flush=True)
            lines.append(line)
    finally:
        table = markdown(lines, facts(options.dir))
        print(table)
    try:
        _keep(table, lines, options)
    except NotMeasured as error:
        print(f"the table was not kept: {error}", file=sys.stderr)
        return 1
    if not lines:
        print(f"nothing was measured: no line has the words {options.only!r}", file=sys.stderr)
    return int(not lines or any(isinstance(line, Missing) for line in lines))


def _measured(options: argparse.Namespace) -> Iterator[Line]:
    for name in options.names or MEASUREMENTS:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            with (
                tempfile.TemporaryDirectory(prefix="zot-bench-", dir=options.dir, ignore_cleanup_errors=True) as made,
                Valkey(Path(made) / "valkey") as valkey,
            ):
                spread(Path(made))
                yield from ALL[name](Testbed(Path(made), valkey, options.quick, options.only, options.pairs))
        except FAILURES as error:
            yield Missing(name, str(error))


def _keep(table: str, lines: list[Line], options: argparse.Namespace) -> None:
    if options.quick or options.names not in _KEPT:
        return
    if options.only:
        exchange(lines, options.names[0])
    elif not all(isinstance(line, Missing) for line in lines):
        keep(table, *options.names)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure speed and memory.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=_CHOICE)
    parser.add_argument("--quick", action="store_true", help="a few minutes on smaller files, not kept in the README")
    parser.add_argument("--pairs", type=int, help="how many of each line, in upload-dir, verify-stores and replicate")
    parser.add_argument("--only", metavar="WORDS", default="", help=_ONLY)
    parser.add_argument(
        "--dir", type=Path, default=Path(tempfile.gettempdir()), help="where to measure, with 20 GiB free (%(default)s)"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in ALL]
    if unknown:
        parser.error(f"there is no {unknown[0]!r} to measure, there are {', '.join(ALL)}")
    if options.only and not (options.names and set(options.names) <= LONG.keys()):
        parser.error(f"--only goes with {' or '.join(LONG)}")
    if not options.dir.is_dir():
        parser.error(f"--dir: {options.dir} is not a directory that exists")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
