"""Run replicate, verify and delete: on one artifact as one job, on many (`--all`, `--keys-from`) as one batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.cli.arguments import STREAM, ArtifactPath, input_file, local_path
from worker.cli.errors import UsageError
from worker.cli.job_outcome import Outcome
from worker.cli.send_and_wait import WaitOptions, request_of, sender
from worker.cli.session import Session
from worker.cli.stage_file import check_file, stage, within_roots
from zot_artifact_client.contract import BATCH, BatchRequest, TaskSpec
from zot_artifact_client.job_ids import choose_id


@dataclass(frozen=True, slots=True)
class Selection:
    """The artifacts that the arguments of a command name."""

    path: str
    all_below: bool
    keys_from: str | None
    in_flight: int | None

    @property
    def many(self) -> bool:
        """Return whether the selection is many artifacts.

        Raises:
            Failure: the arguments contradict each other, or select nothing.
        """
        if self.keys_from is not None and (self.path or self.all_below):
            raise UsageError("--keys-from names all artifacts: leave out BUCKET/KEY and --all")
        if self.all_below and not self.path:
            raise UsageError("--all needs a BUCKET, or BUCKET/PREFIX")
        many = self.all_below or self.keys_from is not None
        if not many and not self.path:
            raise UsageError("name an artifact, or many with --all BUCKET[/PREFIX] or --keys-from FILE")
        if not many and self.in_flight is not None:
            raise UsageError("--in-flight goes with --all or --keys-from")
        return many


def run_verb(
    session: Session,
    spec: TaskSpec[Any, Any],
    selection: Selection,
    fields: Mapping[str, object],
    waiting: WaitOptions,
) -> Outcome:
    """Send one job, or one batch for a selection of many artifacts, and wait for its end unless --no-wait is given.

    Raises:
        Failure: the request is not valid, or its list cannot be read or staged; nothing was sent.
    """
    verb, fields = spec.kind, {**fields, "notify": waiting.notify or None}
    if selection.many:
        spec, request = BATCH, _batch_request(verb, selection, fields)
    else:
        at = ArtifactPath.parse(selection.path, many="--all")
        request = request_of(spec, bucket=at.bucket, key=at.key, **fields)
    job_id = choose_id(spec, idempotency_key=waiting.key)
    with sender(session, f"{verb}: waiting for a worker", waiting) as way:
        keys_from = Path(request.keys_from) if selection.many and request.keys_from else None
        if keys_from is None or within_roots(keys_from, session.settings):
            job = way.send_once(spec, job_id, request)
        else:
            staged = stage(keys_from, session.settings, job_id, named_by_digest=True)
            update = {"keys_from": str(staged.path), "staged": True}
            job = way.send_staged(spec, job_id, request.model_copy(update=update), staged)
        return way.wait(job)


def _batch_request(verb: str, selection: Selection, fields: Mapping[str, object]) -> BatchRequest:
    where: dict[str, object] = {"in_flight": selection.in_flight}
    if selection.keys_from is None:
        bucket, _, prefix = selection.path.partition("/")
        where |= {"bucket": bucket, "prefix": prefix or None}
    else:
        where |= {"keys_from": str(_list(selection.keys_from))}
    request: BatchRequest = request_of(BATCH, verb=verb, **fields, **where)
    return request


def _list(name: str) -> Path:
    if name == STREAM:
        return input_file(name)
    if local_path(name).is_dir():
        why = "it is a directory; name a file with one BUCKET/KEY on each line"
        raise UsageError(f"--keys-from {name}: {why}")
    return check_file(name)
