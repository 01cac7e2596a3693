"""Make the first tables: artifacts, copies, the ledger of jobs, the verification log.

Revision: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_MOMENT = sa.DateTime(timezone=True)

_NEVER = {
    "artifacts_identity_is_never_updated": (
        "BEFORE UPDATE OF bucket, key, version, size, sha256 ON artifacts",
        "the identity of an artifact version is never updated",
    ),
    "artifacts_are_never_deleted": ("BEFORE DELETE ON artifacts", "artifact versions are never deleted"),
    "verifications_are_never_updated": ("BEFORE UPDATE ON verifications", "the verification log is append-only"),
    "verifications_are_never_deleted": ("BEFORE DELETE ON verifications", "the verification log is append-only"),
}


def upgrade() -> None:
    """Make the tables and the triggers that hold what must never change."""
    op.create_table(
        "artifacts",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("bucket", sa.String(63), nullable=False),
        sa.Column("key", sa.String(1024), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("committed_at", _MOMENT),
        sa.Column("tombstoned_at", _MOMENT),
        sa.UniqueConstraint("bucket", "key", "version", name="uq_artifacts_bucket_key_version"),
    )
    op.create_table(
        "copies",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("artifact_id", _ID, sa.ForeignKey("artifacts.id", name="fk_copies_artifact_id"), nullable=False),
        sa.Column("store", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("tag", sa.String(256)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("last_verdict", sa.String(16)),
        sa.Column("last_attempt_at", _MOMENT),
        sa.Column("last_verified_at", _MOMENT),
        sa.Column("next_due_at", _MOMENT),
        sa.Column("claimed_until", _MOMENT),
        sa.Column("evidence", sa.JSON, nullable=False),
        sa.UniqueConstraint("artifact_id", "store", name="uq_copies_artifact_id_store"),
    )
    op.create_index("ix_copies_due", "copies", ["store", "last_attempt_at", "next_due_at"])
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.String(128)),
        sa.Column("lease_until", _MOMENT),
        sa.Column("holds", sa.String(1100)),
        sa.Column("progress", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("result", sa.JSON),
        sa.Column("parent", sa.String(64)),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("started_at", _MOMENT),
        sa.Column("finished_at", _MOMENT),
    )
    op.create_index("ix_jobs_created_at", "jobs", ["created_at"])
    op.create_index("ix_jobs_holds", "jobs", ["holds", "lease_until"])
    op.create_index("ix_jobs_state", "jobs", ["state", "lease_until"])
    op.create_table(
        "verifications",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("job", sa.String(64), nullable=False),
        sa.Column("store", sa.String(128), nullable=False),
        sa.Column("bucket", sa.String(63), nullable=False),
        sa.Column("key", sa.String(1024), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("expected_sha256", sa.String(64)),
        sa.Column("found_sha256", sa.String(64)),
        sa.Column("found_size", sa.BigInteger),
        sa.Column("detail", sa.String(2000)),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_index("ix_verifications_object", "verifications", ["bucket", "key", "store"])
    for name, (when, why) in _NEVER.items():
        op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{why}'); END")
