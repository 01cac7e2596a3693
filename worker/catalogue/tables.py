"""The catalogue's tables. Migrations make them; this is what they look like now."""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER counts up by itself in SQLite


class UtcDateTime(TypeDecorator[datetime]):
    """Moments in UTC. SQLite forgets the zone, so it is taken off on the way in and put on again on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Refuse moments without a zone; turn the others to UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            msg = f"a moment without a time zone: {value}"
            raise ValueError(msg)
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Say that it is UTC."""
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


artifacts = Table(
    "artifacts",
    metadata,
    Column("id", Id, primary_key=True),
    Column("bucket", String(63), nullable=False),
    Column("key", String(1024), nullable=False),
    Column("version", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("committed_at", UtcDateTime),
    Column("tombstoned_at", UtcDateTime),
    UniqueConstraint("bucket", "key", "version"),
)
"""One row a version. `committed_at`: its first copy was whole. Triggers keep its digest from being updated."""

copies = Table(
    "copies",
    metadata,
    Column("id", Id, primary_key=True),
    Column("artifact_id", ForeignKey("artifacts.id"), nullable=False),
    Column("store", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("tag", String(256)),
    Column("attempts", Integer, nullable=False, default=0),
    Column("last_verdict", String(16)),
    Column("last_attempt_at", UtcDateTime),
    Column("last_verified_at", UtcDateTime),
    Column("next_due_at", UtcDateTime),
    Column("claimed_until", UtcDateTime),
    Column("evidence", JSON, nullable=False),
    UniqueConstraint("artifact_id", "store"),
    Index("ix_copies_due", "store", "last_attempt_at", "next_due_at"),
)
"""One row for a version in a store. `tag` is the store's own version tag of the bytes we wrote or saw."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(64), nullable=False),
    Column("request", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("fence", Integer, nullable=False, default=0),
    Column("lease_owner", String(128)),
    Column("lease_until", UtcDateTime),
    Column("holds", String(1100)),
    Column("progress", JSON),
    Column("error", JSON),
    Column("result", JSON),
    Column("parent", String(64)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Index("ix_jobs_created_at", "created_at"),
    Index("ix_jobs_holds", "holds", "lease_until"),
    Index("ix_jobs_state", "state", "lease_until"),
)
"""The ledger. `holds` is the `bucket/key` that no other job may write to while this one's lease lasts."""

verifications = Table(
    "verifications",
    metadata,
    Column("id", Id, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("job", String(64), nullable=False),
    Column("store", String(128), nullable=False),
    Column("bucket", String(63), nullable=False),
    Column("key", String(1024), nullable=False),
    Column("version", Integer, nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("expected_sha256", String(64)),
    Column("found_sha256", String(64)),
    Column("found_size", BigInteger),
    Column("detail", String(2000)),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index("ix_verifications_object", "bucket", "key", "store"),
)
"""One row a verdict, append-only. `hash` is over the row and `previous`, the hash of the row before it."""

manifests = Table(
    "manifests",
    metadata,
    Column("artifact_id", ForeignKey("artifacts.id"), primary_key=True),
    Column("chunk_size", Integer, nullable=False),
    Column("digests", LargeBinary, nullable=False),
)
"""The SHA-256 of each chunk of a version, raw, one after the other. Never updated; a trigger sees to it."""

transfers = Table(
    "transfers",
    metadata,
    Column("id", Id, primary_key=True),
    Column("artifact_id", ForeignKey("artifacts.id"), nullable=False),
    Column("store", String(128), nullable=False),
    Column("token", String(2048), nullable=False),
    Column("part_size", BigInteger, nullable=False),
    Column("begun_at", UtcDateTime, nullable=False),
    UniqueConstraint("artifact_id", "store"),
)
"""The open write in parts of a copy."""

transfer_parts = Table(
    "transfer_parts",
    metadata,
    Column("transfer_id", ForeignKey("transfers.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("tag", String(256), nullable=False),
    Column("sha256", String(64), nullable=False),
)
"""Its parts that the store has confirmed, with the SHA-256 of what was sent."""
