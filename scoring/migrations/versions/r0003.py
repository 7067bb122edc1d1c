"""What changed since, and what waits for people, is found by indexes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_TABLE = "scoring_current"
_LOOKED_AT = (
    "SELECT 1 FROM desk_labels l JOIN scoring_history h ON h.id = scoring_current.history_id "
    "WHERE l.model_name = scoring_current.model_name AND l.post_id = scoring_current.post_id "
    "AND (l.input_sha256 = h.input_sha256 OR (l.input_sha256 IS NULL AND h.input_sha256 IS NULL))"
)


def upgrade() -> None:
    id_ = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.add_column(_TABLE, sa.Column("change", id_, nullable=False, server_default="0"))
    op.add_column(_TABLE, sa.Column("waiting", sa.Boolean, nullable=False, server_default=sa.true()))
    op.execute(f"UPDATE {_TABLE} SET change = history_id, waiting = NOT EXISTS ({_LOOKED_AT})")
    op.create_index("scoring_current_change", _TABLE, ["model_name", "change"])
    for name, first in (("score", ()), ("action", ("action",)), ("audit", ("audit",)), ("day", ("day", "action"))):
        op.create_index(f"scoring_waiting_{name}", _TABLE, ["model_name", "waiting", *first, "score", "history_id"])
