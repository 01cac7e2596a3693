"""Remember which store was used under each name.

Revision: 0011
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "store_identities",
        sa.Column("store", Text(128), primary_key=True),
        sa.Column("marker", Text(64), nullable=False),
    )
