"""Record the access tokens of the gateway.

Revision: 0019
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0019"
down_revision = "0018"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "access_tokens",
        sa.Column("id", Text(16), primary_key=True),
        sa.Column("name", Text(64), nullable=False),
        sa.Column("sha256", Text(64), nullable=False),
        sa.Column("buckets", sa.JSON, nullable=False),
        sa.Column("verbs", sa.JSON, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT),
        sa.Column("revoked_at", _MOMENT),
    )
    op.create_index("ix_access_tokens_name", "access_tokens", ["name"])
