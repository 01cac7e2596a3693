"""Do a verb to many artifacts with one command: `--all` and `--keys-from`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.cli.errors import Failure, Status
from worker.cli.outcome import Outcome
from worker.cli.staging import check_file, stage, within_roots
from worker.cli.submit import Sender, request_of, sender
from worker.context import Context
from zot_artifact_client import BrokerUnavailable
from zot_artifact_client.client import choose_id
from zot_artifact_client.contract import BATCH, BatchRequest

All = Annotated[bool, typer.Option("--all", help="Every artifact of BUCKET, or whose path begins with BUCKET/PREFIX.")]
KeysFrom = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="The artifacts that a file lists, one BUCKET/KEY on each line; - for stdin."),
]
InFlight = Annotated[
    int | None, typer.Option(min=1, max=10_000, metavar="N", help="With many: at work at a time at most.")
]
SomePlace = Annotated[
    str,
    typer.Argument(
        metavar="[BUCKET/KEY]", help="The artifact, or with --all a bucket or BUCKET/PREFIX.", show_default=False
    ),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Many:
    """What a command is told of the artifacts that it is about."""

    place: str
    everything_there: bool
    keys_from: str | None
    in_flight: int | None

    @property
    def asked(self) -> bool:
        """Return whether it is about many, and not about one.

        Raises:
            Failure: it cannot be told.
        """
        if self.keys_from is not None and (self.place or self.everything_there):
            raise Failure("--keys-from names all artifacts: leave out the place and --all", Status.USAGE)
        if self.everything_there and not self.place:
            raise Failure("--all needs a BUCKET, or BUCKET/PREFIX", Status.USAGE)
        many = self.everything_there or self.keys_from is not None
        if not many and not self.place:
            raise Failure("name an artifact, or many with --all BUCKET[/PREFIX] or --keys-from FILE", Status.USAGE)
        if not many and self.in_flight is not None:
            raise Failure("--in-flight goes with --all or --keys-from", Status.USAGE)
        return many


def run_many(
    context: Context,
    verb: str,
    many: Many,
    fields: Mapping[str, object],
    *,
    key: str | None,
    wait: bool,
    timeout: float | None,
) -> Outcome:
    """Send a batch and stay with it until it has ended.

    Raises:
        Failure: the list cannot be read or staged; nothing was sent.
    """
    where: dict[str, object] = {"in_flight": many.in_flight}
    if many.keys_from is None:
        bucket, _, prefix = many.place.partition("/")
        where |= {"bucket": bucket, "prefix": prefix or None}
    else:
        where |= {"keys_from": str(_list(many.keys_from))}
    request: BatchRequest = request_of(BATCH, verb=verb, **fields, **where)
    job_id = choose_id(BATCH, idempotency_key=key)
    with sender(context, f"{verb}: waiting for a worker") as way:
        job = way.client.job(job_id, BATCH) if way.known(BATCH, job_id, request) else _send(way, job_id, request)
        return way.stay(job, timeout) if wait else Outcome(job_id, BATCH.kind)


def _send(way: Sender, job_id: str, request: BatchRequest) -> Any:
    settings, path = way.context.settings, Path(request.keys_from or "")
    if request.keys_from is None or within_roots(path, settings):
        return way.send(BATCH, job_id, request)
    staged = stage(path, settings, job_id, None, _nothing)
    try:
        return way.send(BATCH, job_id, request.model_copy(update={"keys_from": str(staged.path), "staged": True}))
    except BrokerUnavailable:
        staged.drop()
        raise


def _list(name: str) -> Path:
    return Path("/dev/stdin") if name == "-" else check_file(name)


_nothing: Callable[[int], None] = lambda _: None  # noqa: E731
