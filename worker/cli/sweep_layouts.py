"""The sweeps over layouts that name their own digests: `sweep oci`, `bagit`, `ocfl` and `sha256sums`."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import typer

from worker.artifacts.verify_layouts.bagit import verify_bagit
from worker.artifacts.verify_layouts.checked_prefix import CheckedPrefix, Fault, FaultKind
from worker.artifacts.verify_layouts.ocfl import verify_ocfl
from worker.artifacts.verify_layouts.oci import verify_oci
from worker.artifacts.verify_layouts.sha256sums import verify_sha256sums
from worker.cli.errors import UsageError
from worker.cli.open_limited_stores import stores_within_limits
from worker.cli.output import complain, note, print_json, say
from worker.cli.progress import bar
from worker.counted import counted
from worker.exit_status import Status
from worker.readable import size
from worker.settings import load_settings
from worker.storage.configured_stores import Stores
from worker.storage.keys import check_bucket
from zot_artifact_client.contract import Progress

_LAYOUTS: dict[str, tuple[Callable[[CheckedPrefix], Iterator[Fault]], str]] = {
    "oci": (verify_oci, "OCI layout"),
    "bagit": (verify_bagit, "bag"),
    "ocfl": (verify_ocfl, "OCFL object"),
    "sha256sums": (verify_sha256sums, "list"),
}
_KEPT = 10_000
"""Faults that the JSON document names; all of them are counted."""
_EVERY = 100


def sweep_layout(name: str, store: str, path: str, *, dry_run: bool, as_json: bool) -> None:
    """Verify a layout from this process, and exit: 0 if nothing is wrong, 1 if something is, 3 if only unreadable.

    Neither a worker nor a catalogue is needed, and nothing is recorded. The limits of the store count.

    Raises:
        Failure: the store is paused.
        NoLayout: there is no such layout below the path.
        StorageError: the listing has not come to its end.
    """
    bucket, _, prefix = path.partition("/")
    check_bucket(bucket, reserved=True)
    verify, _ = _LAYOUTS[name]
    settings = load_settings()
    stores = Stores(settings.stores)  # without the catalogue's identities: a store is not marked by being read
    counts, faults = Counter[FaultKind](), list[Fault]()
    try:
        with stores_within_limits(settings, stores, [store]) as [read], bar(f"{name}: listing") as shown:
            shown_objects = _Shown(name, shown.update)
            place = CheckedPrefix(read, bucket, prefix, dry_run=dry_run, on_bytes=shown_objects.advance)
            shown_objects.place = place
            for fault in verify(place):
                counts[fault.kind] += 1
                if len(faults) < _KEPT:
                    faults.append(fault)
                if not as_json:
                    complain(f"{fault.kind}: {bucket}/{fault.key}: {fault.detail}")
    finally:
        stores.close()
    _print(name, place, counts, faults, as_json=as_json)
    if not counts:
        raise typer.Exit(Status.GOOD)
    raise typer.Exit(Status.UNKNOWN if set(counts) == {FaultKind.UNREADABLE} else Status.BAD)


class _Shown:
    """Shows the progress of a sweep from any thread, every hundred pieces."""

    def __init__(self, name: str, update: Callable[[Progress], None]) -> None:
        self._name = name
        self._update = update
        self._bytes = self._calls = 0
        self.place: CheckedPrefix | None = None

    def advance(self, count: int) -> None:
        self._bytes += count
        self._calls += 1
        if self._calls % _EVERY == 0 and self.place is not None:
            tally = self.place.tally
            step = f"{self._name}: {tally.listed} listed, {tally.objects} read"
            self._update(Progress(step=step, bytes_done=self._bytes))


def _print(name: str, place: CheckedPrefix, counts: Counter[FaultKind], faults: list[Fault], *, as_json: bool) -> None:
    tally, total = place.tally, sum(counts.values())
    if as_json:
        print_json(_document(name, place, counts, faults))
        return
    verb = "would be read" if place.dry_run else "read in full"
    say(
        f"{place}: {counted(tally.layouts, _LAYOUTS[name][1])}, {counted(tally.listed, 'object')} listed, "
        f"{tally.objects} {verb} ({size(tally.bytes)})"
    )
    if total:
        say(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    else:
        say("nothing is wrong with the names" if place.dry_run else "nothing is wrong")
    note("this sweep records nothing in the catalogue: its result is this report")


def _document(name: str, place: CheckedPrefix, counts: Counter[FaultKind], faults: list[Fault]) -> dict[str, Any]:
    tally = place.tally
    return {
        "sweep": name, "store": place.store.name, "bucket": place.bucket, "prefix": place.prefix,
        "dry_run": place.dry_run, "recorded": False, "layouts": tally.layouts, "listed": tally.listed,
        "read": tally.objects, "bytes": tally.bytes, "counts": dict(counts),
        "faults": [{"kind": each.kind, "key": each.key, "detail": each.detail} for each in faults],
        "faults_left_out": sum(counts.values()) - len(faults),
    }  # fmt: skip


def place_of(name: str, given: list[str], store: str | None, prefix: str | None) -> tuple[str, str]:
    """Return the store and BUCKET[/PREFIX] that the command line names.

    Raises:
        Failure: it names none.
    """
    store = given[0] if given else store
    path = given[1] if len(given) > 1 else prefix
    if not store or not path or len(given) > 2:  # noqa: PLR2004 - a store and a path
        raise UsageError(f"name the store and the place: `zot-artifacts sweep {name} STORE BUCKET[/PREFIX]`")
    return store, path
