"""Triggers that keep rows as they were recorded, in both dialects; migrations use them: change none, add another."""

from collections.abc import Mapping

from alembic import op

_RAISE = """
CREATE OR REPLACE FUNCTION zot_never() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation', MESSAGE = TG_ARGV[0]; END $$
"""


def forbid(rules: Mapping[str, tuple[str, str]]) -> None:
    """Make a trigger for each name: on what it fires, as `BEFORE DELETE ON table`, and what it says."""
    if op.get_bind().dialect.name != "postgresql":
        for name, (when, why) in rules.items():
            op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{why}'); END")
        return
    op.execute(_RAISE)
    for name, (when, why) in rules.items():
        op.execute(f"CREATE TRIGGER {name} {when} FOR EACH ROW EXECUTE FUNCTION zot_never('{why}')")
        if "DELETE" in when:  # TRUNCATE removes all rows and fires for none
            truncate = when.replace("DELETE", "TRUNCATE")
            op.execute(
                f"CREATE TRIGGER {name}_at_once {truncate} FOR EACH STATEMENT EXECUTE FUNCTION zot_never('{why}')"
            )
