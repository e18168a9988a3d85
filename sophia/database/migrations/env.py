"""Alembic's entry: run the revisions on the connection that `sophia.database.migrate` hands over."""

from alembic import context

from sophia.database.migrate import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    version_table_schema="sophia",
)
with context.begin_transaction():
    context.run_migrations()
