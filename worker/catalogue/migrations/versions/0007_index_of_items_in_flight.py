"""Find the children of a batch that are in flight without reading those that ended badly.

Revision: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_IN_FLIGHT = sa.text("outcome IS NULL")


def upgrade() -> None:
    """Replace the index on the outcome: SQLite took the primary key instead, and read a batch's failures every step."""
    op.drop_index("ix_batch_items_outcome", "batch_items")
    op.create_index(
        "ix_batch_items_in_flight",
        "batch_items",
        ["batch", "number"],
        sqlite_where=_IN_FLIGHT,
        postgresql_where=_IN_FLIGHT,
    )
