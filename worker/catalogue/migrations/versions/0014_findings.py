"""Record findings, open those of the copies that are bad, unreadable or lost now, and index the runs of sweeps.

Revision: 0014
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Id, Text

revision = "0014"
down_revision = "0013"

_MOMENT = sa.DateTime(timezone=True)
_OPEN = sa.text("resolved_at IS NULL")
_RESOLVED = sa.text("resolved_at IS NOT NULL")
_SWEEPS = sa.text("kind LIKE 'sweep.%'")

# A copy that is bad, or that could not be read, and an artifact whose current version has bad copies and no good one.
_BAD_COPIES = """
INSERT INTO findings (kind, bucket, key, version, store, opened_at, last_seen_at, evidence)
SELECT c.state, a.bucket, a.key, a.version, c.store,
    COALESCE(c.last_attempt_at, :now), COALESCE(c.last_attempt_at, :now), '{}'
FROM copies c JOIN artifacts a ON a.id = c.artifact_id WHERE c.state IN ('corrupt', 'missing', 'size_mismatch')
"""
_UNREADABLE = """
INSERT INTO findings (kind, bucket, key, version, store, opened_at, last_seen_at, evidence)
SELECT 'unreadable', a.bucket, a.key, a.version, c.store,
    COALESCE(c.last_attempt_at, :now), COALESCE(c.last_attempt_at, :now), '{}'
FROM copies c JOIN artifacts a ON a.id = c.artifact_id WHERE c.next_due_at IS NOT NULL
"""
_LOST = """
INSERT INTO findings (kind, bucket, key, version, store, opened_at, last_seen_at, evidence)
SELECT 'lost', a.bucket, a.key, a.version, '', :now, :now, '{}'
FROM artifacts a
WHERE a.committed_at IS NOT NULL AND a.tombstoned_at IS NULL
    AND NOT EXISTS (SELECT 1 FROM artifacts n WHERE n.bucket = a.bucket AND n.key = a.key
        AND n.version > a.version AND n.committed_at IS NOT NULL)
    AND a.id IN (SELECT c.artifact_id FROM copies c WHERE c.state IN ('corrupt', 'missing', 'size_mismatch'))
    AND NOT EXISTS (SELECT 1 FROM copies g WHERE g.artifact_id = a.id AND g.state IN ('stored', 'verified'))
"""
_UNTRUSTED = """
INSERT INTO findings (kind, store, opened_at, last_seen_at, evidence)
SELECT 'store_untrusted', store, untrusted_since, untrusted_since, '{}'
FROM store_trust WHERE untrusted_since IS NOT NULL
"""


def upgrade() -> None:
    """Make the table and its indexes, and open what is open."""
    op.create_table(
        "findings",
        sa.Column("id", Id, primary_key=True),
        sa.Column("kind", Text(32), nullable=False),
        sa.Column("bucket", Text(63), nullable=False, server_default=""),
        sa.Column("key", Text(1024), nullable=False, server_default=""),
        sa.Column("version", sa.Integer, nullable=False, server_default="0"),
        sa.Column("store", Text(128), nullable=False, server_default=""),
        sa.Column("opened_at", _MOMENT, nullable=False),
        sa.Column("last_seen_at", _MOMENT, nullable=False),
        sa.Column("acted_at", _MOMENT),
        sa.Column("action", Text(64)),
        sa.Column("job", Text(64)),
        sa.Column("resolved_at", _MOMENT),
        sa.Column("how", Text(500)),
        sa.Column("acknowledged_at", _MOMENT),
        sa.Column("acknowledged_by", Text(500)),
        sa.Column("note", Text(500)),
        sa.Column("evidence", sa.JSON, nullable=False),
    )
    op.create_index(
        "uq_findings_open", "findings", ["bucket", "key", "store", "kind", "version"],
        unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN,
    )  # fmt: skip
    op.create_index(
        "ix_findings_kind", "findings", ["kind", "store", "id", "opened_at", "acknowledged_at", "acted_at"],
        sqlite_where=_OPEN, postgresql_where=_OPEN,
    )  # fmt: skip
    op.create_index(
        "ix_findings_resolved", "findings", ["resolved_at"], sqlite_where=_RESOLVED, postgresql_where=_RESOLVED
    )
    op.create_index("ix_jobs_sweeps", "jobs", ["kind", "created_at"], sqlite_where=_SWEEPS, postgresql_where=_SWEEPS)
    now = sa.bindparam("now", datetime.now(UTC), type_=_MOMENT)
    for statement in (_BAD_COPIES, _UNREADABLE, _LOST):
        op.execute(sa.text(statement).bindparams(now))
    op.execute(sa.text(_UNTRUSTED))
