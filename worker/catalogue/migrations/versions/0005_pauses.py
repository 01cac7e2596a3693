"""Keep what is paused.

Revision: 0005
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "pauses",
        sa.Column("scope", Text(16), primary_key=True),
        sa.Column("name", Text(128), primary_key=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", Text(500)),
    )
