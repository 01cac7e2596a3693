"""Record what the verify sweep has used of the budget of each store.

Revision: 0022
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0022"
down_revision = "0021"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "budgets",
        sa.Column("store", Text(128), primary_key=True),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("bytes_level", sa.Double, nullable=False),
        sa.Column("requests_level", sa.Double, nullable=False),
        sa.Column("cost_level", sa.Double, nullable=False),
        sa.Column("day", Text(10), nullable=False),
        sa.Column("day_bytes", sa.BigInteger, nullable=False),
        sa.Column("day_requests", sa.BigInteger, nullable=False),
        sa.Column("month", Text(7), nullable=False),
        sa.Column("month_cost", sa.Double, nullable=False),
        sa.Column("copies", sa.BigInteger),
        sa.Column("bytes", sa.BigInteger),
        sa.Column("counted_at", _MOMENT),
    )
