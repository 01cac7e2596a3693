"""Run migrations on the connection that the catalogue hands over; there is no other way to run them."""

from alembic import context

from worker.catalogue.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the catalogue runs all migrations in one transaction
)
context.run_migrations()
