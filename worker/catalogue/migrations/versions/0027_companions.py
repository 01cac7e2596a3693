"""Record the companions of artifacts: signatures, attestations and SBOMs that belong to them.

Revision: 0027
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "companions",
        sa.Column("bucket", Text(63), primary_key=True),
        sa.Column("key", Text(1024), primary_key=True),
        sa.Column("of_key", Text(1024)),
        sa.Column("by", Text(500), nullable=False),
        sa.Column("named_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_companions_of_key", "companions", ["bucket", "of_key"])
