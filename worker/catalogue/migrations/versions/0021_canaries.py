"""Record the canaries that are damaged on purpose.

Revision: 0021
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Id, Text

revision = "0021"
down_revision = "0020"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "canaries",
        sa.Column("id", Id, primary_key=True),
        sa.Column("store", Text(128), nullable=False),
        sa.Column("key", Text(1024), nullable=False),
        sa.Column("begun_at", _MOMENT, nullable=False),
        *(sa.Column(name, _MOMENT) for name in ("damaged_at", "detected_at", "repaired_at", "closed_at")),
    )
    op.create_index("ix_canaries_store", "canaries", ["store", "id"])
