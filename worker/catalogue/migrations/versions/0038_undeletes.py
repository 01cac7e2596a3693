"""Record the deletes that were undone, by whom and why.

Revision: 0038
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.triggers import forbid
from worker.catalogue.types import Id, Text

revision = "0038"
down_revision = "0037"

_MOMENT = sa.DateTime(timezone=True)
_NEVER = {
    "undeletes_are_never_updated": ("BEFORE UPDATE ON undeletes", "the record of an undelete is never changed"),
    "undeletes_are_never_deleted": ("BEFORE DELETE ON undeletes", "the record of an undelete is never removed"),
}


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "undeletes",
        sa.Column("id", Id, primary_key=True),
        sa.Column("bucket", Text(63), nullable=False),
        sa.Column("key", Text(1024), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("deleted_at", _MOMENT, nullable=False),
        sa.Column("deleted_by", Text(500)),
        sa.Column("delete_reason", Text(500)),
        sa.Column("job", Text(64), nullable=False),
        sa.Column("undone_at", _MOMENT, nullable=False),
        sa.Column("by", Text(500)),
        sa.Column("reason", Text(500)),
    )
    op.create_index("ix_undeletes_key", "undeletes", ["bucket", "key"])
    forbid(_NEVER)
    if op.get_bind().dialect.name != "postgresql":  # REPLACE fires no trigger of a delete
        there = "EXISTS (SELECT 1 FROM undeletes WHERE id = NEW.id)"
        why = "the record of an undelete is never changed"
        forbid({"undeletes_are_never_replaced": (f"BEFORE INSERT ON undeletes WHEN {there}", why)})
