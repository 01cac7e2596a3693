"""Record how many copies a second the verify sweep has to read of each store.

Revision: 0026
"""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("budgets", sa.Column("needed", sa.Double))
    op.add_column("budgets", sa.Column("needed_at", sa.DateTime(timezone=True)))
