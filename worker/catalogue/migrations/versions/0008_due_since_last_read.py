"""Compute from the last full read when a copy is due, and index what sweeps and `stores` ask.

Revision: 0008
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0008"
down_revision = "0007"

_MOMENT = sa.DateTime(timezone=True)
_NO_RETRY = sa.text("next_due_at IS NULL")


def upgrade() -> None:
    """Add `read_at` and `spread`; `next_due_at` keeps only the retry of an unreadable copy."""
    op.add_column("copies", sa.Column("read_at", _MOMENT))
    op.add_column("copies", sa.Column("spread", sa.SmallInteger, nullable=False, server_default="0"))
    op.execute(
        "UPDATE copies SET read_at = COALESCE(last_verified_at, last_attempt_at, "
        "(SELECT COALESCE(committed_at, created_at) FROM artifacts WHERE artifacts.id = copies.artifact_id)), "
        "spread = CASE WHEN last_attempt_at IS NULL THEN artifact_id % 12 ELSE 12 + artifact_id % 4 END "
        "WHERE next_due_at IS NOT NULL"
    )
    op.execute("UPDATE copies SET next_due_at = NULL WHERE last_verdict IS NULL OR last_verdict != 'unreadable'")
    op.drop_index("ix_copies_due", "copies")
    op.create_index(
        "ix_copies_due", "copies", ["store", "spread", "read_at"], sqlite_where=_NO_RETRY, postgresql_where=_NO_RETRY
    )
    has_retry = sa.text("next_due_at IS NOT NULL")
    op.create_index(
        "ix_copies_retry", "copies", ["store", "next_due_at"], sqlite_where=has_retry, postgresql_where=has_retry
    )
    op.create_index("ix_copies_state", "copies", ["store", "state", "last_verified_at"])
    op.create_table(
        "sweep_cursors",
        sa.Column("name", Text(2200), primary_key=True),
        sa.Column("after", sa.BigInteger, nullable=False),
    )
