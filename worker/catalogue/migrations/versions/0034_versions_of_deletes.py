"""Record which versions a delete of one artifact found: its approval is for no other.

Of a delete that waits for its approval meanwhile, the time of its request decides, as before.

Revision: 0034
"""

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"


def upgrade() -> None:
    """Add the column."""
    op.add_column("delete_requests", sa.Column("versions", sa.JSON))
