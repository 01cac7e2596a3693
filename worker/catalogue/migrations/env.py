"""Run migrations on the connection that the catalogue hands over; there is no other way to run them."""

from alembic import context

from worker.catalogue.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the catalogue has one transaction around all of it
)
context.run_migrations()
