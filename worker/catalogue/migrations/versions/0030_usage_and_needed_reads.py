"""Record what each bucket uses of a store, and how many copies a second are to be read of new ones and again.

Revision: 0030
"""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("budgets", sa.Column("needed_new", sa.Double))
    op.add_column("budgets", sa.Column("needed_again", sa.Double))
    op.add_column("budgets", sa.Column("buckets", sa.JSON))
