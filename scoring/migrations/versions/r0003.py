"""What changed since is found by an index; so are the flagged posts of a day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    id_ = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.add_column("scoring_current", sa.Column("change", id_, nullable=False, server_default="0"))
    op.execute("UPDATE scoring_current SET change = history_id")
    op.create_index("scoring_current_change", "scoring_current", ["model_name", "change"])
    day = ["model_name", "day", "action", "score", "history_id"]
    op.create_index("scoring_current_day_action", "scoring_current", day)
