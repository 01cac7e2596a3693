"""Keep the lists of the directories that batches upload, which were files of one machine.

Revision: 0032
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "upload_lists",
        sa.Column("batch", Text(128), primary_key=True),
        sa.Column("begin", sa.BigInteger, primary_key=True),
        sa.Column("lines", sa.LargeBinary, nullable=False),
    )
