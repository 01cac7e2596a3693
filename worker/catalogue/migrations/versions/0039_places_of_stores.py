"""Record where each store is, so that its place is known also by another name.

Revision: 0039
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0039"
down_revision = "0038"


def upgrade() -> None:
    """Add the column."""
    op.add_column("store_identities", sa.Column("place", Text(16)))
