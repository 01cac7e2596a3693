"""Index the bad verdicts by store and time, and remember which stores repairs do not trust.

Revision: 0013
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0013"
down_revision = "0012"

_MOMENT = sa.DateTime(timezone=True)
_BAD = sa.text("verdict IN ('corrupt', 'missing', 'size_mismatch')")


def upgrade() -> None:
    """Make the index and the table."""
    op.create_index("ix_verifications_bad", "verifications", ["store", "at"], sqlite_where=_BAD, postgresql_where=_BAD)
    op.create_table(
        "store_trust",
        sa.Column("store", Text(128), primary_key=True),
        sa.Column("untrusted_since", _MOMENT),
        sa.Column("reason", Text(500)),
        sa.Column("trusted_at", _MOMENT),
    )
