"""The queries that the worker answers from its catalogue: the models of each question and each answer.

A query is no job: it has no row in the ledger, is not sent again, and its answer is kept for a minute. Its message has
an id of the form `query-` and 32 hexadecimal digits, which no job may have.
"""

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from zot_artifact_client.contract.requests import Bucket, Message, Request
from zot_artifact_client.contract.results import ArtifactResult, JobError, Progress, Result

QUERY_ID = re.compile(r"query-[0-9a-f]{32}")
"""The form of the id of a query's message."""
ANSWER_KEPT = 60
"""Seconds for which the result backend keeps an answer."""
MAX_LISTED = 1000
"""Artifacts of one answer to a list query; fewer where the keys are long."""
MAX_CHUNKS = 4096
"""Chunk digests of one answer to a show query: those of 64 GiB."""


class ShowRequest(Request):
    """Return what the catalogue has of one artifact and its copies."""

    chunks_from: Annotated[int, Field(ge=0)] | None = None
    """Also return the manifest, from the chunk with this number on; chunks are counted from 0."""


class ListRequest(Message):
    """Return the artifacts of a bucket by key."""

    bucket: Bucket
    prefix: Annotated[str, StringConstraints(max_length=1024)] = ""
    after: Annotated[str, StringConstraints(max_length=1024)] = ""
    """The list begins after this key."""
    limit: Annotated[int, Field(ge=1, le=MAX_LISTED)] = MAX_LISTED


class StatusRequest(Message):
    """Return what the ledger has of one job."""

    job: Annotated[str, StringConstraints(min_length=1, max_length=128)]


class ArtifactInfo(ArtifactResult):
    """The current version of an artifact."""

    created_at: datetime


class CopyInfo(Result):
    """What the catalogue has of one copy; `state` is its last verdict, or `stored` if it was not read yet."""

    store: str
    state: str
    configured: bool = True
    """False: the store is not in the worker's settings any more."""
    last_verified_at: datetime | None = None
    last_attempt_at: datetime | None = None


class HoldInfo(Result):
    """Who has forbidden to delete or replace the artifact, since when and why."""

    held_at: datetime
    by: str
    reason: str


class ManifestPart(Result):
    """The SHA-256 of some chunks of an artifact, in hexadecimal, in order; all have `chunk_size` bytes but the last."""

    chunk_size: int
    total: int
    """Chunks of the artifact."""
    first: int
    """Number of the first chunk here."""
    sha256: tuple[str, ...]


class ShowResult(ArtifactInfo):
    """The current version of an artifact, and its copies.

    `manifest` is None if it was not asked for, or if none was recorded for an artifact of more than one chunk.
    """

    metadata: dict[str, str] = Field(default_factory=dict)
    properties: dict[str, str] = Field(default_factory=dict)
    hold: HoldInfo | None = None
    copies: tuple[CopyInfo, ...] = ()
    companions: tuple[str, ...] = ()
    """The keys of what belongs to it in its bucket, such as signatures and SBOMs."""
    companion_of: str | None = None
    """The key of the artifact that this one belongs to."""
    manifest: ManifestPart | None = None


class ListResult(Result):
    """A page of artifacts. `next` is the `after` of the page that follows, or None at the end."""

    artifacts: tuple[ArtifactInfo, ...]
    next: str | None = None


class StatusResult(Result):
    """What the ledger has of a job; `state` is `unknown` for a job that it does not have."""

    job: str
    state: str
    kind: str | None = None
    attempts: int = 0
    created_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    error: JobError | None = None


class StatusAnswer(StatusResult):
    """The answer of a worker, with the digest of the job's request: a client compares it with the one that it sent."""

    request_sha256: str | None = None
