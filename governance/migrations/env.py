"""Alembic environment: runs on the connection that ``governance.database.migrate`` passes."""

from __future__ import annotations

from alembic import context

from governance.database import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
