"""Record which months of the verification log were archived: these rows alone may be removed.

Revision: 0035
"""

import sqlalchemy as sa
from alembic import op

from worker.catalogue.triggers import forbid
from worker.catalogue.types import Text

revision = "0035"
down_revision = "0034"

_NEVER = {
    "log_archives_are_never_updated": ("BEFORE UPDATE ON log_archives", "an archive of the log is never changed"),
    "log_archives_are_never_deleted": ("BEFORE DELETE ON log_archives", "an archive of the log is never forgotten"),
}
_MOMENT = sa.DateTime(timezone=True)
_WHY = "the verification log is append-only: only rows of an archived month are removed"
_IS_ARCHIVED = "EXISTS (SELECT 1 FROM log_archives WHERE OLD.id BETWEEN log_archives.first AND log_archives.last)"
_POSTGRESQL = f"""
CREATE OR REPLACE FUNCTION zot_only_archived() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
IF {_IS_ARCHIVED} THEN RETURN OLD; END IF;
RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation', MESSAGE = '{_WHY}';
END $$
"""
_IS_THERE = "EXISTS (SELECT 1 FROM log_archives WHERE last = NEW.last OR previous = NEW.previous)"
_DELETES = "verifications_are_never_deleted"


def upgrade() -> None:
    """Make the table, and let the trigger of the log pass what the table has."""
    op.create_table(
        "log_archives",
        sa.Column("last", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("month", Text(7), nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("previous", Text(64), nullable=False),
        sa.Column("hash", Text(64), nullable=False),
        sa.Column("ended_at", _MOMENT, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", Text(64), nullable=False),
        sa.Column("archived_at", _MOMENT, nullable=False),
        sa.UniqueConstraint("previous", name="uq_log_archives_previous"),
    )
    forbid(_NEVER)
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_POSTGRESQL)
        op.execute(f"DROP TRIGGER {_DELETES} ON verifications")  # the one of TRUNCATE stays
        op.execute(
            f"CREATE TRIGGER {_DELETES} BEFORE DELETE ON verifications "
            "FOR EACH ROW EXECUTE FUNCTION zot_only_archived()"
        )
    else:
        op.execute(f"DROP TRIGGER {_DELETES}")
        forbid({
            _DELETES: (f"BEFORE DELETE ON verifications WHEN NOT {_IS_ARCHIVED}", _WHY),
            # REPLACE fires no trigger of a delete unless recursive_triggers is on
            "log_archives_are_never_replaced": (
                f"BEFORE INSERT ON log_archives WHEN {_IS_THERE}",
                "an archive of the log is never changed",
            ),
        })  # fmt: skip
