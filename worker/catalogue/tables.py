"""The catalogue's tables, as the migrations leave them."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    UniqueConstraint,
    exists,
    text,
)

from worker.catalogue.types import Id, Text, UtcDateTime

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", Id, primary_key=True),
    Column("bucket", Text(63), nullable=False),
    Column("key", Text(1024), nullable=False),
    Column("version", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text(64), nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("committed_at", UtcDateTime),
    Column("tombstoned_at", UtcDateTime),
    Column("job", Text(64)),
    Column("properties", JSON),
    Column("stores_named", Boolean),
    Column("reused_by", JSON),
    UniqueConstraint("bucket", "key", "version"),
    Index("ix_artifacts_job", "job"),
)
"""One row a version. `committed_at`: its first copy was whole. `job` is the one that recorded it.

`properties`: the headers beside its bytes, by the names of `ObjectProperties`.

`stores_named`: all its uploads named their stores, so that the setting `placement` adds no other.

`reused_by`: the last jobs that uploaded the same bytes, and so recorded no version of their own.

Triggers forbid updates of its digest.
"""

_newer = artifacts.alias("newer")
CURRENT = (
    artifacts.c.committed_at.is_not(None),
    artifacts.c.tombstoned_at.is_(None),
    ~exists().where(
        _newer.c.bucket == artifacts.c.bucket,
        _newer.c.key == artifacts.c.key,
        _newer.c.version > artifacts.c.version,
        _newer.c.committed_at.is_not(None),
    ),
)
"""The conditions of a current version: committed, newest and not deleted."""

_NO_RETRY = text("next_due_at IS NULL")
_HAS_RETRY = text("next_due_at IS NOT NULL")
_NEVER = text("last_verified_at IS NULL")

copies = Table(
    "copies",
    metadata,
    Column("id", Id, primary_key=True),
    Column("artifact_id", ForeignKey("artifacts.id"), nullable=False),
    Column("store", Text(128), nullable=False),
    Column("state", Text(16), nullable=False),
    Column("tag", Text(256)),
    Column("attempts", Integer, nullable=False, default=0),
    Column("last_verdict", Text(16)),
    Column("last_attempt_at", UtcDateTime),
    Column("last_verified_at", UtcDateTime),
    Column("next_due_at", UtcDateTime),
    Column("claimed_until", UtcDateTime),
    Column("evidence", JSON, nullable=False),
    Column("read_at", UtcDateTime),
    Column("spread", SmallInteger, nullable=False, default=0, server_default="0"),
    UniqueConstraint("artifact_id", "store"),
    Index("ix_copies_due", "store", "spread", "read_at", sqlite_where=_NO_RETRY, postgresql_where=_NO_RETRY),
    Index("ix_copies_retry", "store", "next_due_at", sqlite_where=_HAS_RETRY, postgresql_where=_HAS_RETRY),
    Index("ix_copies_state", "store", "state"),
    Index("ix_copies_never_verified", "store", "state", sqlite_where=_NEVER, postgresql_where=_NEVER),
)
"""One row for a version in a store. `tag` is the store's own version tag of the bytes we wrote or saw.

`read_at`: the last full read, or the write if there was none; a sweep computes from it when the copy is due. `spread`
is the part of the period that the copy waits, see `sweep_claims`. `next_due_at`: the retry of an unreadable copy.
"""

evidence_checks = Table(
    "evidence_checks",
    metadata,
    Column("copy_id", ForeignKey("copies.id", ondelete="CASCADE"), primary_key=True),
    Column("checked_at", UtcDateTime, nullable=False),
    Column("source", Text(16), nullable=False),
    Column("outcome", Text(16), nullable=False),
    Column("compared", Text(200), nullable=False),
    Column("detail", Text(500)),
)
"""The last comparison of a copy with what its store says about it, without a read; see `evidence`."""

_FINISHED = text("finished_at IS NOT NULL")
SWEEPS = text("kind LIKE 'sweep.%'")
"""As the index of the runs of sweeps has it: with parameters SQLite does not use that index."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text(64), primary_key=True),
    Column("kind", Text(64), nullable=False),
    Column("request", JSON, nullable=False),
    Column("state", Text(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("fence", Integer, nullable=False, default=0),
    Column("lease_owner", Text(128)),
    Column("lease_until", UtcDateTime),
    Column("holds", Text(1100)),
    Column("progress", JSON),
    Column("error", JSON),
    Column("result", JSON),
    Column("parent", Text(64)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("queue", Text(64)),
    Column("due_at", UtcDateTime),
    Column("crashes", Integer, nullable=False, default=0),
    Column("put_off_since", UtcDateTime),
    Index("ix_jobs_created_at", "created_at"),
    Index("ix_jobs_due_at", "due_at"),
    Index("ix_jobs_finished_at", "finished_at", sqlite_where=_FINISHED, postgresql_where=_FINISHED),
    Index("ix_jobs_holds", "holds", "lease_until"),
    Index("ix_jobs_parent", "parent", "id"),
    Index("ix_jobs_state", "state", "lease_until"),
    Index("ix_jobs_sweeps", "kind", "created_at", sqlite_where=SWEEPS, postgresql_where=SWEEPS),
)
"""The ledger. Two columns keep their first names, which a program of the version before may still use.

`holds`: the `bucket/key` that this job writes to, and no other job while its lease lasts. It has nothing to
do with the table `holds`. `put_off_since`: since when the job snoozes.

`due_at`: an open job without a heartbeat by then is sent again. `crashes`: starts in a row at which the worker died.
"""

BAD_VERDICT = text("verdict IN ('corrupt', 'missing', 'size_mismatch')")
"""As the index of bad verdicts has it: with parameters SQLite does not use that index."""

verifications = Table(
    "verifications",
    metadata,
    Column("id", Id, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("job", Text(64), nullable=False),
    Column("store", Text(128), nullable=False),
    Column("bucket", Text(63), nullable=False),
    Column("key", Text(1024), nullable=False),
    Column("version", Integer, nullable=False),
    Column("verdict", Text(16), nullable=False),
    Column("expected_sha256", Text(64)),
    Column("found_sha256", Text(64)),
    Column("found_size", BigInteger),
    Column("detail", Text(2000)),
    Column("previous", Text(64), nullable=False),
    Column("hash", Text(64), nullable=False),
    Index("ix_verifications_bad", "store", "at", sqlite_where=BAD_VERDICT, postgresql_where=BAD_VERDICT),
    Index("ix_verifications_object", "bucket", "key", "store"),
)
"""One row a verdict, append-only. `hash` is over the row and `previous`, the hash of the row before it."""

log_archives = Table(
    "log_archives",
    metadata,
    Column("last", BigInteger, primary_key=True, autoincrement=False),
    Column("first", BigInteger, nullable=False),
    Column("month", Text(7), nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("previous", Text(64), nullable=False),
    Column("hash", Text(64), nullable=False),
    Column("ended_at", UtcDateTime, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text(64), nullable=False),
    Column("archived_at", UtcDateTime, nullable=False),
    UniqueConstraint("previous"),
)
"""The months of the verification log that the stores keep: their rows alone may be removed. Triggers forbid changes.

`first` and `last` are the ids of rows, `previous` is the hash before the first, `hash` and `ended_at` are of the last.
"""

manifests = Table(
    "manifests",
    metadata,
    Column("artifact_id", ForeignKey("artifacts.id"), primary_key=True),
    Column("chunk_size", Integer, nullable=False),
    Column("digests", LargeBinary, nullable=False),
)
"""The SHA-256 of each chunk of a version, raw, one after the other. A trigger forbids updates."""

transfers = Table(
    "transfers",
    metadata,
    Column("id", Id, primary_key=True),
    Column("artifact_id", ForeignKey("artifacts.id"), nullable=False),
    Column("store", Text(128), nullable=False),
    Column("token", Text(2048), nullable=False),
    Column("part_size", BigInteger, nullable=False),
    Column("begun_at", UtcDateTime, nullable=False),
    UniqueConstraint("artifact_id", "store"),
)
"""The open multipart upload of a copy."""

transfer_parts = Table(
    "transfer_parts",
    metadata,
    Column("transfer_id", ForeignKey("transfers.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("tag", Text(256), nullable=False),
    Column("sha256", Text(64), nullable=False),
)
"""The parts that the store has confirmed, with the SHA-256 of the bytes sent."""

upload_intents = Table(
    "upload_intents",
    metadata,
    Column("id", Id, primary_key=True),
    Column("store", Text(128), nullable=False),
    Column("bucket", Text(63), nullable=False),
    Column("key", Text(1024), nullable=False),
    Column("intended_at", UtcDateTime, nullable=False),
    Index("ix_upload_intents_place", "store", "bucket", "key"),
)
"""The multipart uploads that were about to begin and that `transfers` does not have, in stores that mark no upload."""

batches = Table(
    "batches",
    metadata,
    Column("job", Text(64), primary_key=True),
    Column("cursor", JSON, nullable=False),
    Column("exhausted", Boolean, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("total", BigInteger),
    Column("total_bytes", BigInteger),
    Column("planned", BigInteger, nullable=False),
    Column("ended", BigInteger, nullable=False),
    Column("ended_bytes", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("outcomes", JSON, nullable=False),
    Column("begun_at", UtcDateTime, nullable=False),
    Column("next_step_at", UtcDateTime, nullable=False),
    Index("ix_batches_open", "open"),
)
"""The planner's cursor of a batch job, and the counts of its outcomes; nothing is ever counted twice.

`cursor`: where the next page begins. `exhausted`: there is none. `open`: its jobs have been neither all counted nor
asked to end. `next_step_at`: a message that is delivered earlier is a duplicate.
"""

sweep_cursors = Table(
    "sweep_cursors",
    metadata,
    Column("name", Text(2200), primary_key=True),
    Column("after", BigInteger, nullable=False),
)
"""For a sweep that reads the artifacts in slices: the artifact id after which its next run continues."""

artifact_locks = Table(
    "artifact_locks",
    metadata,
    Column("bucket", Text(63), primary_key=True),
    Column("key", Text(1024), primary_key=True),
    Column("job", Text(64), nullable=False),
    Column("fence", Integer, nullable=False),
    Index("ix_artifact_locks_job", "job"),
)
"""The artifacts that a page may write to, while its job has its lease under this fence."""

upload_lists = Table(
    "upload_lists",
    metadata,
    Column("batch", Text(128), primary_key=True),
    Column("begin", BigInteger, primary_key=True),
    Column("lines", LargeBinary, nullable=False),
)
"""What a batch uploads or adopts, compressed, hundreds of lines in a row; `begin` is the number of the first line."""

pages = Table(
    "pages",
    metadata,
    Column("job", Text(64), primary_key=True),
    Column("claimed_until", UtcDateTime),
    Column("open", JSON, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("outcomes", JSON, nullable=False),
    Column("failures", JSON, nullable=False),
    Column("left", JSON, nullable=False),
    Column("not_kept", JSON),
)
"""A page whose job has not ended. `open`: the ids of the copies or artifacts, or the numbers of the lines, without an
outcome. A claim of a copy is this page's while both have the same `claimed_until`.
"""

catalogue_identity = Table("catalogue_identity", metadata, Column("id", Text(36), primary_key=True))
"""One row: an id that no other catalogue has."""

_IN_FLIGHT = text("outcome IS NULL")

batch_items = Table(
    "batch_items",
    metadata,
    Column("batch", ForeignKey("batches.job"), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("job", Text(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("outcome", Text(32)),
    Index("ix_batch_items_in_flight", "batch", "number", sqlite_where=_IN_FLIGHT, postgresql_where=_IN_FLIGHT),
)
"""The jobs of a batch that are in flight, without an outcome, and those that failed.

A job that succeeded is counted and removed, one that failed leaves the index, so that each run of the planner reads
the same number of rows.
"""

pauses = Table(
    "pauses",
    metadata,
    Column("scope", Text(16), primary_key=True),
    Column("name", Text(128), primary_key=True),
    Column("since", UtcDateTime, nullable=False),
    Column("reason", Text(500)),
)
"""What is paused: a store, a queue, or one job."""

store_identities = Table(
    "store_identities",
    metadata,
    Column("store", Text(128), primary_key=True),
    Column("marker", Text(64), nullable=False),
    Column("place", Text(16)),
)
"""The id in the marker of each store, as it was when the store was first used under its name.

`place`: the hash of where the store is by its settings; a name that left the settings keeps it.
"""

store_trust = Table(
    "store_trust",
    metadata,
    Column("store", Text(128), primary_key=True),
    Column("untrusted_since", UtcDateTime),
    Column("reason", Text(500)),
    Column("trusted_at", UtcDateTime),
)
"""The stores whose repairs stopped, since when and why, and when an operator trusted each again."""

_OPEN = text("resolved_at IS NULL")
_RESOLVED = text("resolved_at IS NOT NULL")
UNTOLD_OPEN = text("resolved_at IS NULL AND told < 2")
UNTOLD_RESOLVED = text("resolved_at IS NOT NULL AND told < 3")
"""As the indexes of findings that no alarm has told have it: with parameters SQLite does not use them."""

findings = Table(
    "findings",
    metadata,
    Column("id", Id, primary_key=True),
    Column("kind", Text(32), nullable=False),
    Column("bucket", Text(63), nullable=False, server_default=""),
    Column("key", Text(1024), nullable=False, server_default=""),
    Column("version", Integer, nullable=False, server_default="0"),
    Column("store", Text(128), nullable=False, server_default=""),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
    Column("acted_at", UtcDateTime),
    Column("action", Text(64)),
    Column("job", Text(64)),
    Column("resolved_at", UtcDateTime),
    Column("how", Text(500)),
    Column("acknowledged_at", UtcDateTime),
    Column("acknowledged_by", Text(500)),
    Column("note", Text(500)),
    Column("evidence", JSON, nullable=False),
    Column("told", SmallInteger, nullable=False, server_default="0"),
    Index(
        "uq_findings_open", "bucket", "key", "store", "kind", "version",
        unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN,
    ),
    Index(
        "ix_findings_kind", "kind", "store", "id", "opened_at", "acknowledged_at", "acted_at",
        sqlite_where=_OPEN, postgresql_where=_OPEN,
    ),
    Index("ix_findings_resolved", "resolved_at", sqlite_where=_RESOLVED, postgresql_where=_RESOLVED),
    Index("ix_findings_untold", "told", "opened_at", sqlite_where=UNTOLD_OPEN, postgresql_where=UNTOLD_OPEN),
    Index("ix_findings_untold_end", "told", sqlite_where=UNTOLD_RESOLVED, postgresql_where=UNTOLD_RESOLVED),
)  # fmt: skip
"""One row for each deviation of a copy, an artifact, an object or a store, see `FindingKind`.

`told`: the last change that an alarm has told: 1 that it was opened, 2 that it is still open, 3 that it is resolved.

What does not apply is empty, and `version` 0, so that the index of open ones keeps each kind and place once.
"""

reconcile_runs = Table(
    "reconcile_runs",
    metadata,
    Column("store", Text(128), primary_key=True),
    Column("scope", Text(1100), primary_key=True),
    Column("run", UtcDateTime, nullable=False),
    Column("bucket", Text(63), nullable=False),
    Column("after", Text(1024), nullable=False),
    Column("listed", BigInteger, nullable=False),
    Column("recorded", BigInteger, nullable=False),
    Column("found", JSON, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("outcome", Text(500)),
)
"""The last comparison of a store's listing with the catalogue, and where it goes on: after this key of this bucket.

`run` is when it began, `scope` the bucket and prefix that it is limited to, or empty.
"""

reconcile_sightings = Table(
    "reconcile_sightings",
    metadata,
    Column("store", Text(128), primary_key=True),
    Column("bucket", Text(63), primary_key=True),
    Column("key", Text(1024), primary_key=True),
    Column("kind", Text(32), nullable=False),
    Column("version", Integer, nullable=False),
    Column("size", BigInteger),
    Column("first_run", UtcDateTime, nullable=False),
    Column("last_run", UtcDateTime, nullable=False),
)
"""The keys at which listing and catalogue differed, with the first and the last run that saw it."""

holds = Table(
    "holds",
    metadata,
    Column("bucket", Text(63), primary_key=True),
    Column("key", Text(1024), primary_key=True),
    Column("held_at", UtcDateTime, nullable=False),
    Column("by", Text(500), nullable=False),
    Column("reason", Text(500), nullable=False),
    Column("stores", JSON),
)
"""The artifacts that are neither deleted nor replaced, who said so and why. `stores`: what each store said to a hold of
its own, by the name of the store.
"""

companions = Table(
    "companions",
    metadata,
    Column("bucket", Text(63), primary_key=True),
    Column("key", Text(1024), primary_key=True),
    Column("of_key", Text(1024)),
    Column("by", Text(500), nullable=False),
    Column("named_at", UtcDateTime, nullable=False),
    Index("ix_companions_of_key", "bucket", "of_key"),
)
"""The artifact of the same bucket that each belongs to; without `of_key` it belongs to none, whatever its key says."""

tombstones = Table(
    "tombstones",
    metadata,
    Column("bucket", Text(63), primary_key=True),
    Column("key", Text(1024), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("deleted_at", UtcDateTime, nullable=False),
    Column("purge_after", UtcDateTime, nullable=False),
    Column("purging_at", UtcDateTime),
    Column("by", Text(500)),
    Column("reason", Text(500)),
    Column("job", Text(64), nullable=False),
    Index("ix_tombstones_purge_after", "purge_after"),
)
"""The deletes whose bytes are still there. `purging_at`: since when they are removed, so that it cannot be undone."""

undeletes = Table(
    "undeletes",
    metadata,
    Column("id", Id, primary_key=True),
    Column("bucket", Text(63), nullable=False),
    Column("key", Text(1024), nullable=False),
    Column("version", Integer, nullable=False),
    Column("deleted_at", UtcDateTime, nullable=False),
    Column("deleted_by", Text(500)),
    Column("delete_reason", Text(500)),
    Column("job", Text(64), nullable=False),
    Column("undone_at", UtcDateTime, nullable=False),
    Column("by", Text(500)),
    Column("reason", Text(500)),
    Index("ix_undeletes_key", "bucket", "key"),
)
"""The deletes that were undone, by whom and why. `job`: that of the delete, whose tombstone is gone.

Triggers forbid changes.
"""

_PENDING = text("delivered_at IS NULL")

alarm_digests = Table(
    "alarm_digests",
    metadata,
    Column("id", Text(36), primary_key=True),
    Column("channel", Text(16), primary_key=True),
    Column("made_at", UtcDateTime, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_at", UtcDateTime, nullable=False),
    Column("delivered_at", UtcDateTime),
    Column("error", Text(500)),
    Index("ix_alarm_digests_pending", "channel", "next_at", sqlite_where=_PENDING, postgresql_where=_PENDING),
    Index("ix_alarm_digests_channel", "channel", "delivered_at"),
)
"""What changed in the findings, for each channel that tells it. `next_at`: when the next attempt is due."""

job_webhooks = Table(
    "job_webhooks",
    metadata,
    Column("job", Text(64), primary_key=True),
    Column("receiver", Text(64), primary_key=True),
    Column("made_at", UtcDateTime, nullable=False),
    Column("id", Text(36)),
    Column("payload", JSON),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_at", UtcDateTime),
    Column("delivered_at", UtcDateTime),
    Column("error", Text(500)),
    Index("ix_job_webhooks_pending", "next_at", sqlite_where=_PENDING, postgresql_where=_PENDING),
    Index("ix_job_webhooks_made_at", "made_at"),
)
"""Who gets the end of a job. `payload`: the end, once it is told. `next_at`: when the next attempt is due, or none is.
"""

access_tokens = Table(
    "access_tokens",
    metadata,
    Column("id", Text(16), primary_key=True),
    Column("name", Text(64), nullable=False),
    Column("sha256", Text(64), nullable=False),
    Column("buckets", JSON, nullable=False),
    Column("verbs", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Index("ix_access_tokens_name", "name"),
)
"""The secrets of the gateway's tokens: `sha256` is the hash of one, `buckets` and `verbs` what it allows."""

canaries = Table(
    "canaries",
    metadata,
    Column("id", Id, primary_key=True),
    Column("store", Text(128), nullable=False),
    Column("key", Text(1024), nullable=False),
    Column("begun_at", UtcDateTime, nullable=False),
    Column("damaged_at", UtcDateTime),
    Column("detected_at", UtcDateTime),
    Column("repaired_at", UtcDateTime),
    Column("closed_at", UtcDateTime),
    Index("ix_canaries_store", "store", "id"),
)
"""The canaries that were damaged on purpose, and when that was found and repaired."""

budgets = Table(
    "budgets",
    metadata,
    Column("store", Text(128), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("bytes_level", Double, nullable=False),
    Column("requests_level", Double, nullable=False),
    Column("cost_level", Double, nullable=False),
    Column("day", Text(10), nullable=False),
    Column("day_bytes", BigInteger, nullable=False),
    Column("day_requests", BigInteger, nullable=False),
    Column("month", Text(7), nullable=False),
    Column("month_cost", Double, nullable=False),
    Column("copies", BigInteger),
    Column("bytes", BigInteger),
    Column("counted_at", UtcDateTime),
    Column("buckets", JSON),
    Column("needed", Double),
    Column("needed_at", UtcDateTime),
    Column("needed_first", Double),
    Column("needed_new", Double),
    Column("needed_again", Double),
)
"""What the verify sweep has used of each store's budget: see `BudgetState`.

`copies`, `bytes`: all that it reads. `buckets`: the same by bucket, the largest first. `needed` and the columns that
begin with it: the copies a second that it has to read, see `NeededReads`.
"""

delete_requests = Table(
    "delete_requests",
    metadata,
    Column("job", Text(64), primary_key=True),
    Column("state", Text(16), nullable=False),
    Column("what", Text(500), nullable=False),
    Column("objects", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("requested_by", Text(500), nullable=False),
    Column("reason", Text(500)),
    Column("requested_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("decided_by", Text(500)),
    Column("decided_from", Text(500)),
    Column("decided_at", UtcDateTime),
    Column("note", Text(500)),
    Column("versions", JSON),
    Index("ix_delete_requests_state", "state", "requested_by", "requested_at"),
)
"""The deletes that count towards `delete.approval_above`, and who decided about those that needed an approval.

`versions`: the artifact versions that a delete of one artifact found when it was requested, by id.
"""
