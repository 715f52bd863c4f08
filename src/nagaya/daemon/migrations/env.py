"""Run by alembic, never imported: applies the versions over the connection that `state.migrate` made."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
