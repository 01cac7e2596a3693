"""Record which job recorded a version, so that the next attempt of the job uses that version again.

Revision: 0006
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.types import Text

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column and its index; versions from before have none, and their jobs have long ended."""
    op.add_column("artifacts", sa.Column("job", Text(64)))
    op.create_index("ix_artifacts_job", "artifacts", ["job"])
