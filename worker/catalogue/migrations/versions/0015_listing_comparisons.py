"""Remember what comparisons of listings with the catalogue have seen.

Revision: 0015
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0015"
down_revision = "0014"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "reconcile_runs",
        sa.Column("store", Text(128), primary_key=True),
        sa.Column("scope", Text(1100), primary_key=True),
        sa.Column("run", _MOMENT, nullable=False),
        sa.Column("bucket", Text(63), nullable=False),
        sa.Column("after", Text(1024), nullable=False),
        sa.Column("listed", sa.BigInteger, nullable=False),
        sa.Column("recorded", sa.BigInteger, nullable=False),
        sa.Column("found", sa.JSON, nullable=False),
        sa.Column("finished_at", _MOMENT),
        sa.Column("outcome", Text(500)),
    )
    op.create_table(
        "reconcile_sightings",
        sa.Column("store", Text(128), primary_key=True),
        sa.Column("bucket", Text(63), primary_key=True),
        sa.Column("key", Text(1024), primary_key=True),
        sa.Column("kind", Text(32), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("size", sa.BigInteger),
        sa.Column("first_run", _MOMENT, nullable=False),
        sa.Column("last_run", _MOMENT, nullable=False),
    )
