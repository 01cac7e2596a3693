"""End the dead pages whose objects an earlier version made jobs of their own: nothing of them is left to redrive.

These are the pages of batches that have succeeded, which counted them, and those of sweeps whose progress was removed.

Revision: 0037
"""

import sqlalchemy as sa
from alembic import op

revision = "0037"
down_revision = "0036"


def upgrade() -> None:
    """Set their state, as the pages have that are split now."""
    jobs = sa.table(
        "jobs", sa.column("id"), sa.column("kind"), sa.column("state"), sa.column("parent"),
        sa.column("request", sa.JSON),
    )  # fmt: skip
    pages, batches = sa.table("pages", sa.column("job")), jobs.alias("batches")
    is_counted = sa.exists().where(
        batches.c.id == jobs.c.parent, batches.c.kind == "batch", batches.c.state == "succeeded"
    )
    of_sweep = sa.and_(jobs.c.request["claim"].as_string().is_not(None), jobs.c.request["verb"].as_string() != "adopt")
    is_removed = sa.and_(of_sweep, ~sa.exists().where(pages.c.job == jobs.c.id))
    dead = sa.and_(jobs.c.kind == "page", jobs.c.state == "dead", sa.or_(is_counted, is_removed))
    op.execute(sa.update(jobs).where(dead).values(state="failed"))
