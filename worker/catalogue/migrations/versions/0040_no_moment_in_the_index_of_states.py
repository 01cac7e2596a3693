"""Take the last verification out of the index of copies by state, which each verdict changed.

An index of the copies that were never verified takes its place, which a copy leaves at its first verdict.

Revision: 0040
"""

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0039"

_NEVER = sa.text("last_verified_at IS NULL")


def upgrade() -> None:
    """Make the indexes."""
    op.drop_index("ix_copies_state", "copies")
    op.create_index("ix_copies_state", "copies", ["store", "state"])
    op.create_index(
        "ix_copies_never_verified", "copies", ["store", "state"], sqlite_where=_NEVER, postgresql_where=_NEVER
    )
