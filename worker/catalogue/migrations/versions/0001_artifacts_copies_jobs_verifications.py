"""Make the first tables: artifacts, copies, the ledger of jobs, the verification log.

Revision: 0001
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.triggers import forbid
from worker.catalogue.types import Id, Text

revision = "0001"
down_revision = None

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
        sa.Column("id", Id, primary_key=True),
        sa.Column("bucket", Text(63), nullable=False),
        sa.Column("key", Text(1024), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", Text(64), nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("committed_at", _MOMENT),
        sa.Column("tombstoned_at", _MOMENT),
        sa.UniqueConstraint("bucket", "key", "version", name="uq_artifacts_bucket_key_version"),
    )
    op.create_table(
        "copies",
        sa.Column("id", Id, primary_key=True),
        sa.Column("artifact_id", Id, sa.ForeignKey("artifacts.id", name="fk_copies_artifact_id"), nullable=False),
        sa.Column("store", Text(128), nullable=False),
        sa.Column("state", Text(16), nullable=False),
        sa.Column("tag", Text(256)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("last_verdict", Text(16)),
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
        sa.Column("id", Text(64), primary_key=True),
        sa.Column("kind", Text(64), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("state", Text(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_owner", Text(128)),
        sa.Column("lease_until", _MOMENT),
        sa.Column("holds", Text(1100)),
        sa.Column("progress", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("result", sa.JSON),
        sa.Column("parent", Text(64)),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("started_at", _MOMENT),
        sa.Column("finished_at", _MOMENT),
    )
    op.create_index("ix_jobs_created_at", "jobs", ["created_at"])
    if op.get_bind().dialect.name == "postgresql":
        # A row of any other index there has at most 2,700 bytes; what a message says here is not checked yet.
        op.create_index("ix_jobs_holds", "jobs", ["holds"], postgresql_using="hash")
    else:
        op.create_index("ix_jobs_holds", "jobs", ["holds", "lease_until"])
    op.create_index("ix_jobs_state", "jobs", ["state", "lease_until"])
    op.create_table(
        "verifications",
        sa.Column("id", Id, primary_key=True),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("job", Text(64), nullable=False),
        sa.Column("store", Text(128), nullable=False),
        sa.Column("bucket", Text(63), nullable=False),
        sa.Column("key", Text(1024), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("verdict", Text(16), nullable=False),
        sa.Column("expected_sha256", Text(64)),
        sa.Column("found_sha256", Text(64)),
        sa.Column("found_size", sa.BigInteger),
        sa.Column("detail", Text(2000)),
        sa.Column("previous", Text(64), nullable=False),
        sa.Column("hash", Text(64), nullable=False),
    )
    op.create_index("ix_verifications_object", "verifications", ["bucket", "key", "store"])
    forbid(_NEVER)
