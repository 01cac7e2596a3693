"""Record which receivers get the end of which job.

Revision: 0024
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0024"
down_revision = "0023"

_MOMENT = sa.DateTime(timezone=True)
_PENDING = sa.text("delivered_at IS NULL")


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "job_webhooks",
        sa.Column("job", Text(64), primary_key=True),
        sa.Column("receiver", Text(64), primary_key=True),
        sa.Column("made_at", _MOMENT, nullable=False),
        sa.Column("id", Text(36)),
        sa.Column("payload", sa.JSON),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", _MOMENT),
        sa.Column("delivered_at", _MOMENT),
        sa.Column("error", Text(500)),
    )
    op.create_index(
        "ix_job_webhooks_pending", "job_webhooks", ["next_at"], sqlite_where=_PENDING, postgresql_where=_PENDING
    )
    op.create_index("ix_job_webhooks_made_at", "job_webhooks", ["made_at"])
