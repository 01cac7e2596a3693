"""Record what stores do not keep beside the bytes, with the outcomes of a page: a second delivery reports it, too.

Revision: 0028
"""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"


def upgrade() -> None:
    """Add the column."""
    op.add_column("pages", sa.Column("not_kept", sa.JSON))
