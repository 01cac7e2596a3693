"""Compare requests by their digests, so that one id, or one idempotency key, never names two requests.

A digest is kept in Redis beside each id that a caller chose or that follows from an idempotency key. The worker stores
it with the states of a job, and says it with what the ledger has, for a job whose digest in Redis has expired.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from zot_artifact_client.errors import IdempotencyMismatch

DIGEST_KEY = "zot-artifacts:idempotency:{job}"
"""The Redis key of the digest of the request that was sent under an id, by job id."""
DIGEST_TTL = 30 * 24 * 3600
"""Seconds for which a digest is kept after the id was last used. The ledger refuses another request for longer."""


def digest_of(kind: str, payload: Mapping[str, object]) -> str:
    """Return the SHA-256, in hex, of a request of this kind."""
    canonical = json.dumps([kind, payload], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def idempotency_mismatch(jobs: Sequence[str]) -> IdempotencyMismatch:
    """Return the error for ids of jobs that belong to other requests."""
    more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    return IdempotencyMismatch(
        f"the id or idempotency key of job {jobs[0]}{more} belongs to another request: choose another one, or send the "
        "same request as before"
    )


def check_same(job_id: str, ours: str | None, theirs: str | None) -> None:
    """Raise IdempotencyMismatch if a job is that of another request than ours, by their digests; None is unknown."""
    if ours is not None and theirs is not None and ours != theirs:
        raise idempotency_mismatch([job_id])


def compare(client: Any, digests: Mapping[str, str], *, record: bool) -> list[str]:
    """Return the ids that belong to other requests, in one round trip; `record` makes the free ones belong to these."""
    with client.pipeline(transaction=True) as pipeline:
        push_comparison(pipeline, digests, record=record)
        return read_mismatches(digests, pipeline.execute())


def push_comparison(pipeline: Any, digests: Mapping[str, str], *, record: bool) -> None:
    """Add to a Redis pipeline, of either client, what compares the digests of requests by job id."""
    keys = {DIGEST_KEY.format(job=job): digest for job, digest in digests.items()}
    for key, digest in keys.items() if record else ():
        pipeline.set(key, digest, nx=True, ex=DIGEST_TTL)
        pipeline.expire(key, DIGEST_TTL)
    for key in keys:
        pipeline.get(key)


def read_mismatches(digests: Mapping[str, str], answers: Sequence[Any]) -> list[str]:
    """Return the ids that belong to other requests, from the answers to `push_comparison`."""
    kept = zip(digests.items(), answers[-len(digests) :], strict=True)
    return [job for (job, digest), known in kept if known not in {None, digest.encode()}]


def replace_digest(client: Any, job: str, digest: str) -> None:
    """Make an id belong to the request with this digest, whatever it belonged to."""
    client.set(DIGEST_KEY.format(job=job), digest, ex=DIGEST_TTL)


def free_id(client: Any, job: str) -> None:
    """Make an id belong to no request."""
    client.delete(DIGEST_KEY.format(job=job))
