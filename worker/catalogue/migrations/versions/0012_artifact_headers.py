"""Keep the headers that belong to an artifact beside its bytes, such as its Content-Type.

Revision: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the column; versions from before have no properties."""
    op.add_column("artifacts", sa.Column("properties", sa.JSON))
