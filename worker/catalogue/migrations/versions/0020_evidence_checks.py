"""Record checks of the evidence that stores give about copies.

Revision: 0020
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Id, Text

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "evidence_checks",
        sa.Column(
            "copy_id",
            Id,
            sa.ForeignKey("copies.id", name="fk_evidence_checks_copy_id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("source", Text(16), nullable=False),
        sa.Column("outcome", Text(16), nullable=False),
        sa.Column("compared", Text(200), nullable=False),
        sa.Column("detail", Text(500)),
    )
