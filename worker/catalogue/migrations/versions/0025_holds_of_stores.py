"""Record what each store said to a hold of its own on an artifact.

Revision: 0025
"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    """Add the column."""
    op.add_column("holds", sa.Column("stores", sa.JSON))
