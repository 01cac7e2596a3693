"""Keep a digest of the request beside each idempotency key, so that one key never names two requests."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

DIGEST_KEY = "zot-artifacts:idempotency:{job}"
"""The Redis key of the digest of the request that was sent under an idempotency key, by job id."""
DIGEST_TTL = 30 * 24 * 3600
"""Seconds for which a digest is kept after the key was last used. The ledger refuses another request for longer."""


def digest_of(kind: str, payload: Mapping[str, object]) -> str:
    """Return the SHA-256, in hex, of a request of this kind."""
    canonical = json.dumps([kind, payload], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def mismatches(client: Any, digests: Mapping[str, str]) -> list[str]:
    """Record the digests of requests by job id, in one round trip, and return the ids that belong to other requests."""
    with client.pipeline(transaction=True) as pipeline:
        push_digests(pipeline, digests)
        return read_mismatches(digests, pipeline.execute())


def push_digests(pipeline: Any, digests: Mapping[str, str]) -> None:
    """Add to a Redis pipeline, of either client, what records the digests of requests by job id."""
    for job, digest in digests.items():
        key = DIGEST_KEY.format(job=job)
        pipeline.set(key, digest, nx=True, ex=DIGEST_TTL)
        pipeline.get(key)
        pipeline.expire(key, DIGEST_TTL)


def read_mismatches(digests: Mapping[str, str], answers: Sequence[Any]) -> list[str]:
    """Return the ids that belong to other requests, from the answers to `push_digests`."""
    kept = answers[1::3]
    return [job for (job, digest), known in zip(digests.items(), kept, strict=True) if known != digest.encode()]
