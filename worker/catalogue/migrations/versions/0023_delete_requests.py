"""Record the deletes that count towards `delete.approval_above`, and who decided about them.

Revision: 0023
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0023"
down_revision = "0022"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "delete_requests",
        sa.Column("job", Text(64), primary_key=True),
        sa.Column("state", Text(16), nullable=False),
        sa.Column("what", Text(500), nullable=False),
        sa.Column("objects", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("requested_by", Text(500), nullable=False),
        sa.Column("reason", Text(500)),
        sa.Column("requested_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT, nullable=False),
        sa.Column("decided_by", Text(500)),
        sa.Column("decided_from", Text(500)),
        sa.Column("decided_at", _MOMENT),
        sa.Column("note", Text(500)),
    )
    op.create_index("ix_delete_requests_state", "delete_requests", ["state", "requested_by", "requested_at"])
