"""The tables as they began."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_JSON = sa.JSON()
_DOUBLE = sa.Float(53)
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "scoring_history",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("key", sa.String(64), nullable=False, unique=True),
        sa.Column("post_id", sa.Text, nullable=False),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("policy_version", sa.Text),
        sa.Column("input_sha256", sa.Text),
        sa.Column("scored_at", _TIME, nullable=False),
        sa.Column("latency_ms", _DOUBLE),
        sa.Column("logit", _DOUBLE),
        sa.Column("score", _DOUBLE),
        sa.Column("decisions", _JSON, nullable=False),
        sa.Column("answers", _JSON, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("action", sa.String(16)),
        sa.Column("reasons", _JSON),
        sa.Column("audit", sa.Boolean),
        sa.Column("audit_probability", _DOUBLE),
    )
    op.create_index("scoring_history_post", "scoring_history", ["post_id"])
    op.create_index("scoring_history_version", "scoring_history", ["model_name", "model_version", "scored_at"])
    op.create_table(
        "scoring_current",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("post_id", sa.Text, primary_key=True),
        sa.Column("history_id", _ID, sa.ForeignKey("scoring_history.id"), nullable=False),
        sa.Column("scored_at", _TIME, nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("action", sa.String(16)),
        sa.Column("score", _DOUBLE),
    )
    op.create_index("scoring_current_post", "scoring_current", ["post_id"])
    for name, column in (("score", None), ("day", "day"), ("version", "model_version"), ("action", "action")):
        columns = ["model_name", *([column] if column else []), "score", "history_id"]
        op.create_index(f"scoring_current_{name}", "scoring_current", columns)
    op.create_table(
        "scoring_dead_letters",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("post_id", sa.Text),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("resolved_at", _TIME),
        sa.UniqueConstraint("source", "message_id"),
    )
    op.create_index("scoring_dead_letters_open", "scoring_dead_letters", ["resolved_at", "id"])
