"""Keep chunk manifests beside the digests, and how far writes in parts have come.

Revision: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

_NEVER = {
    "manifests_are_never_updated": ("BEFORE UPDATE ON manifests", "a manifest is never updated"),
    "manifests_are_never_deleted": ("BEFORE DELETE ON manifests", "a manifest is never deleted"),
}


def upgrade() -> None:
    """Make the tables, and the triggers that keep a manifest as it was recorded."""
    op.create_table(
        "manifests",
        sa.Column("artifact_id", _ID, sa.ForeignKey("artifacts.id", name="fk_manifests_artifact_id"), primary_key=True),
        sa.Column("chunk_size", sa.Integer, nullable=False),
        sa.Column("digests", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "transfers",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("artifact_id", _ID, sa.ForeignKey("artifacts.id", name="fk_transfers_artifact_id"), nullable=False),
        sa.Column("store", sa.String(128), nullable=False),
        sa.Column("token", sa.String(2048), nullable=False),
        sa.Column("part_size", sa.BigInteger, nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("artifact_id", "store", name="uq_transfers_artifact_id_store"),
    )
    op.create_table(
        "transfer_parts",
        sa.Column("transfer_id", _ID, sa.ForeignKey("transfers.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("tag", sa.String(256), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )
    for name, (when, why) in _NEVER.items():
        op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{why}'); END")
