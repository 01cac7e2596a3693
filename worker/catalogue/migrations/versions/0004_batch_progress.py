"""Record the progress of a batch beside its job, and find jobs by their parent.

Revision: 0004
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0004"
down_revision = "0003"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables and the index."""
    op.create_index("ix_jobs_parent", "jobs", ["parent", "id"])
    op.create_table(
        "batches",
        sa.Column("job", Text(64), primary_key=True),
        sa.Column("cursor", sa.JSON, nullable=False),
        sa.Column("exhausted", sa.Boolean, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.Column("total", sa.BigInteger),
        sa.Column("total_bytes", sa.BigInteger),
        sa.Column("planned", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.BigInteger, nullable=False),
        sa.Column("ended_bytes", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        sa.Column("outcomes", sa.JSON, nullable=False),
        sa.Column("begun_at", _MOMENT, nullable=False),
        sa.Column("next_step_at", _MOMENT, nullable=False),
    )
    op.create_index("ix_batches_open", "batches", ["open"])
    op.create_table(
        "batch_items",
        sa.Column("batch", Text(64), sa.ForeignKey("batches.job", name="fk_batch_items_batch"), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("job", Text(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("outcome", Text(32)),
    )
    op.create_index("ix_batch_items_outcome", "batch_items", ["batch", "outcome"])
