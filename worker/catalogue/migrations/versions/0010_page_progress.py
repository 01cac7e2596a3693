"""Keep the progress of pages.

Revision: 0010
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "pages",
        sa.Column("job", Text(64), primary_key=True),
        sa.Column("claimed_until", sa.DateTime(timezone=True)),
        sa.Column("open", sa.JSON, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("outcomes", sa.JSON, nullable=False),
        sa.Column("failures", sa.JSON, nullable=False),
        sa.Column("left", sa.JSON, nullable=False),
    )
