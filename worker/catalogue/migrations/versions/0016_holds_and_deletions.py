"""Record holds, and deletes that can be undone.

Revision: 0016
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0016"
down_revision = "0015"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "holds",
        sa.Column("bucket", Text(63), primary_key=True),
        sa.Column("key", Text(1024), primary_key=True),
        sa.Column("held_at", _MOMENT, nullable=False),
        sa.Column("by", Text(500), nullable=False),
        sa.Column("reason", Text(500), nullable=False),
    )
    op.create_table(
        "tombstones",
        sa.Column("bucket", Text(63), primary_key=True),
        sa.Column("key", Text(1024), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("deleted_at", _MOMENT, nullable=False),
        sa.Column("purge_after", _MOMENT, nullable=False),
        sa.Column("purging_at", _MOMENT),
        sa.Column("by", Text(500)),
        sa.Column("reason", Text(500)),
        sa.Column("job", Text(64), nullable=False),
    )
    op.create_index("ix_tombstones_purge_after", "tombstones", ["purge_after"])
