"""Record beside a job what is needed to send it again when no worker reports on it.

Revision: 0003
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0003"
down_revision = "0002"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the columns; what has not ended yet is due at once, so that it is looked after from now on."""
    op.add_column("jobs", sa.Column("queue", Text(64)))
    op.add_column("jobs", sa.Column("due_at", _MOMENT))
    op.add_column("jobs", sa.Column("crashes", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("put_off_since", _MOMENT))
    op.create_index("ix_jobs_due_at", "jobs", ["due_at"])
    op.execute("UPDATE jobs SET due_at = created_at WHERE state IN ('queued', 'running', 'retrying')")
