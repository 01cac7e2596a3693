"""Record how many new copies a second the verify sweep has to read of each store.

An older worker does not know all values of `copies.spread` that are written from now on, and would never read the
copies that have them.

Revision: 0029
"""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    """Add the column."""
    op.add_column("budgets", sa.Column("needed_first", sa.Double))
