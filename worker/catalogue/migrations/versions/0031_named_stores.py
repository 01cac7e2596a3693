"""Record which artifacts were uploaded to stores that the upload named, as far as the ledger still tells it.

Revision: 0031
"""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    """Add the column, and take its value from the requests of uploads."""
    op.add_column("artifacts", sa.Column("stores_named", sa.Boolean))
    artifacts = sa.table("artifacts", sa.column("job"), sa.column("stores_named", sa.Boolean))
    jobs = sa.table("jobs", sa.column("id"), sa.column("kind"), sa.column("request", sa.JSON))
    named = sa.select(jobs.c.id).where(
        jobs.c.kind.in_(["upload", "page"]), jobs.c.request["stores"].as_string().is_not(None)
    )
    op.execute(sa.update(artifacts).where(artifacts.c.job.in_(named)).values(stores_named=True))
