"""Triggers that forbid changes of rows, in both dialects; migrations use them, so change none and add another."""

from collections.abc import Mapping

from alembic import op

_RAISE = """
CREATE OR REPLACE FUNCTION zot_never() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation', MESSAGE = TG_ARGV[0]; END $$
"""


def forbid(rules: Mapping[str, tuple[str, str]]) -> None:
    """Make a trigger for each name: when it fires, as `BEFORE DELETE ON table`, and its message."""
    if op.get_bind().dialect.name != "postgresql":
        for name, (when, why) in rules.items():
            op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{why}'); END")
        return
    op.execute(_RAISE)
    for name, (when, why) in rules.items():
        op.execute(f"CREATE TRIGGER {name} {when} FOR EACH ROW EXECUTE FUNCTION zot_never('{why}')")
        if "DELETE" in when:  # TRUNCATE removes all rows and fires no trigger of a row
            truncate = when.replace("DELETE", "TRUNCATE")
            op.execute(
                f"CREATE TRIGGER {name}_at_once {truncate} FOR EACH STATEMENT EXECUTE FUNCTION zot_never('{why}')"
            )
