"""Attest what full reads have shown of an artifact: an in-toto statement in a signed DSSE envelope.

The predicate is the Simple Verification Result, version 0.2: verifier, time, policy, and the properties that hold.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from worker.catalogue import Artifact, Catalogue, Copy
from worker.counted import counted
from worker.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/svr/v0.2"
PAYLOAD = "application/vnd.in-toto+json"
_COPIES = "urn:zot-artifacts:copies"
_ROWS = 10_000
"""Verdicts of an artifact that are searched for the latest ones of its copies."""


class NotAttested(Exception):
    """The statement would not be true of the artifact; the message names each reason."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The least number of copies, and the time within which each copy must have been read in full and matched."""

    copies: int
    within: timedelta

    @property
    def uri(self) -> str:
        """Return the policy as the statement names it."""
        return f"urn:zot-artifacts:policy:full-read:copies={self.copies}:days={self.days}"

    @property
    def days(self) -> str:
        """Return the time in days."""
        return f"{self.within / timedelta(days=1):g}"


def statement_of(
    artifact: Artifact, catalogue: Catalogue, settings: Settings, policy: Policy, *, verifier: str | None, now: datetime
) -> dict[str, Any]:
    """Return the statement about an artifact.

    Raises:
        NotAttested: a copy is bad, was not read in full within the time, or there are too few.
    """
    copies = [copy for copy in catalogue.artifacts.copies(artifact).values() if copy.state.present]
    reasons = [reason for copy in copies if (reason := _reason(copy, settings, policy, now))]
    if len(copies) < policy.copies:
        reasons.append(f"it has {counted(len(copies), 'copy')}, {policy.copies} are asked for")
    if reasons:
        raise NotAttested(f"{artifact.path} is not attested: {'; '.join(reasons)}")
    rows = _latest(catalogue, artifact)
    return {
        "_type": STATEMENT,
        "subject": [{"name": artifact.path, "digest": {"sha256": artifact.digest.sha256}}],
        "predicateType": PREDICATE,
        "predicate": {
            "verifier": {
                "id": verifier or f"urn:zot-artifacts:{catalogue.identity}",
                "policies": [{"name": "full-read", "uri": policy.uri}],
            },
            "timeCreated": _time(now),
            "properties": [
                "ZOT_ARTIFACTS_FULL_READ",
                f"ZOT_ARTIFACTS_COPIES_{len(copies)}",
                f"ZOT_ARTIFACTS_READ_WITHIN_{policy.days}_DAYS",
            ],
            _COPIES: [_shown(copy, rows.get(copy.store)) for copy in copies],
        },
    }


def sign(statement: Mapping[str, Any], key: "Ed25519PrivateKey") -> dict[str, Any]:
    """Return the DSSE envelope of a statement."""
    payload = json.dumps(statement, separators=(",", ":"), ensure_ascii=False).encode()
    signature = key.sign(signed_bytes(PAYLOAD, payload))
    return {
        "payloadType": PAYLOAD,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key_id(key), "sig": base64.b64encode(signature).decode()}],
    }


def signed_bytes(kind: str, payload: bytes) -> bytes:
    """Return the bytes that a DSSE signature covers: the type and the payload, each after its length."""
    return b" ".join((b"DSSEv1", str(len(kind)).encode(), kind.encode(), str(len(payload)).encode(), payload))


def key_id(key: "Ed25519PrivateKey") -> str:
    """Return the SHA-256 of the public key, as `openssl pkey -pubout -outform DER` writes it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).hexdigest()


def _reason(copy: Copy, settings: Settings, policy: Policy, now: datetime) -> str | None:
    """Return why a copy keeps the artifact from being attested, or None."""
    if copy.store not in settings.stores:
        return f"{copy.store}: the store is not configured, so its copy cannot be read"
    if not copy.state.good:
        return f"{copy.store}: the copy is {copy.state.value}"
    if copy.last_verified_at is None:
        return f"{copy.store}: the copy was not read in full yet"
    if copy.last_verified_at < now - policy.within:
        return f"{copy.store}: the last full read was at {_time(copy.last_verified_at)}"
    return None


def _latest(catalogue: Catalogue, artifact: Artifact) -> dict[str, Mapping[str, Any]]:
    """Return by store the row of the verification log with the latest `verified` verdict."""
    found: dict[str, Mapping[str, Any]] = {}
    rows: Sequence[Mapping[str, Any]] = catalogue.verifications.of(artifact.bucket, artifact.key, limit=_ROWS)
    for row in rows:
        if row["version"] == artifact.version and row["verdict"] == "verified":
            found.setdefault(row["store"], row)
    return found


def _shown(copy: Copy, row: Mapping[str, Any] | None) -> dict[str, Any]:
    assert copy.last_verified_at is not None
    log = {"log": {"row": row["id"], "digest": {"sha256": row["hash"]}}} if row else {}
    return {"store": copy.store, "lastFullRead": _time(copy.last_verified_at), **log}


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
