"""What was reviewed since is found by an index."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # a store that was made on the way to this version has it already
    op.create_index("desk_reviews_model", "desk_reviews", ["model_name", "id"], if_not_exists=True)
