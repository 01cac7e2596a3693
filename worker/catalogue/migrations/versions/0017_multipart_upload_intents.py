"""Record the multipart uploads that are about to begin.

Revision: 0017
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Id, Text

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "upload_intents",
        sa.Column("id", Id, primary_key=True),
        sa.Column("store", Text(128), nullable=False),
        sa.Column("bucket", Text(63), nullable=False),
        sa.Column("key", Text(1024), nullable=False),
        sa.Column("intended_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_upload_intents_place", "upload_intents", ["store", "bucket", "key"])
