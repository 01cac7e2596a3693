"""Record which findings alarms have told, and the digests of each channel.

Revision: 0018
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0018"
down_revision = "0017"

_MOMENT = sa.DateTime(timezone=True)
_UNTOLD_OPEN = sa.text("resolved_at IS NULL AND told < 2")
_UNTOLD_RESOLVED = sa.text("resolved_at IS NOT NULL AND told < 3")
_PENDING = sa.text("delivered_at IS NULL")


def upgrade() -> None:
    """Add the column and the table. What was resolved before is not told any more."""
    op.add_column("findings", sa.Column("told", sa.SmallInteger, nullable=False, server_default="0"))
    op.execute(sa.text("UPDATE findings SET told = 3 WHERE resolved_at IS NOT NULL"))
    op.create_index(
        "ix_findings_untold", "findings", ["told", "opened_at"],
        sqlite_where=_UNTOLD_OPEN, postgresql_where=_UNTOLD_OPEN,
    )  # fmt: skip
    op.create_index(
        "ix_findings_untold_end", "findings", ["told"],
        sqlite_where=_UNTOLD_RESOLVED, postgresql_where=_UNTOLD_RESOLVED,
    )  # fmt: skip
    op.create_table(
        "alarm_digests",
        sa.Column("id", Text(36), primary_key=True),
        sa.Column("channel", Text(16), primary_key=True),
        sa.Column("made_at", _MOMENT, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", _MOMENT, nullable=False),
        sa.Column("delivered_at", _MOMENT),
        sa.Column("error", Text(500)),
    )
    op.create_index(
        "ix_alarm_digests_pending", "alarm_digests", ["channel", "next_at"],
        sqlite_where=_PENDING, postgresql_where=_PENDING,
    )  # fmt: skip
    op.create_index("ix_alarm_digests_channel", "alarm_digests", ["channel", "delivered_at"])
