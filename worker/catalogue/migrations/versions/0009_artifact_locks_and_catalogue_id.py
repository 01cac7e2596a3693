"""Find the verdicts of a job, lock many artifacts at once, prune the ledger, and tell one catalogue from another.

Revision: 0009
"""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

from worker.catalogue.triggers import forbid
from worker.catalogue.types import Text

revision = "0009"
down_revision = "0008"

_ENDED = sa.text("finished_at IS NOT NULL")


def upgrade() -> None:
    """Make the tables and indexes, give the catalogue its id, and keep REPLACE from rewriting what is append-only."""
    op.create_index("ix_verifications_job", "verifications", ["job"])
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"], sqlite_where=_ENDED, postgresql_where=_ENDED)
    op.create_table(
        "artifact_locks",
        sa.Column("bucket", Text(63), primary_key=True),
        sa.Column("key", Text(1024), primary_key=True),
        sa.Column("job", Text(64), nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
    )
    op.create_index("ix_artifact_locks_job", "artifact_locks", ["job"])
    identity = op.create_table(
        "catalogue_identity",
        sa.Column("id", Text(36), primary_key=True),
    )
    op.bulk_insert(identity, [{"id": str(uuid4())}])
    if op.get_bind().dialect.name == "sqlite":
        forbid(_NO_REPLACE)


# REPLACE deletes the row that is in its way, and fires no trigger for that unless recursive_triggers is on.
_NO_REPLACE = {
    "verifications_are_never_replaced": (
        "BEFORE INSERT ON verifications WHEN EXISTS (SELECT 1 FROM verifications WHERE id = NEW.id)",
        "the verification log is append-only: a row is never replaced",
    ),
    "artifacts_are_never_replaced": (
        (
            "BEFORE INSERT ON artifacts WHEN EXISTS (SELECT 1 FROM artifacts WHERE id = NEW.id"
            " OR (bucket = NEW.bucket AND key = NEW.key AND version = NEW.version))"
        ),
        "an artifact version is never replaced",
    ),
    "manifests_are_never_replaced": (
        "BEFORE INSERT ON manifests WHEN EXISTS (SELECT 1 FROM manifests WHERE artifact_id = NEW.artifact_id)",
        "a manifest is never replaced",
    ),
}
