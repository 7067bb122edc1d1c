"""Alembic's own entry: runs the revisions on the connection that `scoring.store` holds, in its transaction."""

from __future__ import annotations

from alembic import context

from steps.retrain import reviewed  # noqa: F401  # its tables stand in METADATA, too
from steps.retrain.stored import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
