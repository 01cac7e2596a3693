"""Drop the index of the log by job, which each verdict changed: a job's verdicts are found by its objects.

Revision: 0036
"""

from alembic import op

revision = "0036"
down_revision = "0035"


def upgrade() -> None:
    """Drop the index."""
    op.drop_index("ix_verifications_job", "verifications")
