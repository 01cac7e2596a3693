"""Record which uploads found the bytes of a version there: their next attempts give way to later versions.

Revision: 0033
"""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"


def upgrade() -> None:
    """Add the column."""
    op.add_column("artifacts", sa.Column("reused_by", sa.JSON))
