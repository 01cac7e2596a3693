"""Keep chunk manifests beside the digests, and how far writes in parts have come.

Revision: 0002
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.triggers import forbid
from worker.catalogue.types import Id, Text

revision = "0002"
down_revision = "0001"


_NEVER = {
    "manifests_are_never_updated": ("BEFORE UPDATE ON manifests", "a manifest is never updated"),
    "manifests_are_never_deleted": ("BEFORE DELETE ON manifests", "a manifest is never deleted"),
}


def upgrade() -> None:
    """Make the tables, and the triggers that keep a manifest as it was recorded."""
    op.create_table(
        "manifests",
        sa.Column("artifact_id", Id, sa.ForeignKey("artifacts.id", name="fk_manifests_artifact_id"), primary_key=True),
        sa.Column("chunk_size", sa.Integer, nullable=False),
        sa.Column("digests", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "transfers",
        sa.Column("id", Id, primary_key=True),
        sa.Column("artifact_id", Id, sa.ForeignKey("artifacts.id", name="fk_transfers_artifact_id"), nullable=False),
        sa.Column("store", Text(128), nullable=False),
        sa.Column("token", Text(2048), nullable=False),
        sa.Column("part_size", sa.BigInteger, nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("artifact_id", "store", name="uq_transfers_artifact_id_store"),
    )
    op.create_table(
        "transfer_parts",
        sa.Column("transfer_id", Id, sa.ForeignKey("transfers.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("tag", Text(256), nullable=False),
        sa.Column("sha256", Text(64), nullable=False),
    )
    forbid(_NEVER)
