"""The review desk's tables; which current posts were drawn for people stands where an index has it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_JSON = sa.JSON()
_TIME = sa.DateTime(timezone=True)
_NAME = sa.String(64)


def upgrade() -> None:
    op.add_column("scoring_current", sa.Column("audit", sa.Boolean))
    op.execute(
        "UPDATE scoring_current SET audit = "
        "(SELECT h.audit FROM scoring_history h WHERE h.id = scoring_current.history_id)"
    )
    op.create_index("scoring_current_audit", "scoring_current", ["model_name", "audit", "score", "history_id"])
    _people()
    _reviews()
    op.create_table(
        "desk_policies",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("nonce", _NAME, nullable=False, unique=True),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("proposed_by", _NAME, nullable=False),
        sa.Column("proposed_at", _TIME, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("confirmed_by", _NAME),
        sa.Column("confirmed_at", _TIME),
    )


def _people() -> None:
    op.create_table(
        "desk_users",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("password", sa.Text),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("hidden", sa.Boolean, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("link_sha256", _NAME),
        sa.Column("link_until", _TIME),
    )
    op.create_table(
        "desk_sessions",
        sa.Column("token_sha256", _NAME, primary_key=True),
        sa.Column("user", _NAME, sa.ForeignKey("desk_users.name"), nullable=False),
        sa.Column("until", _TIME, nullable=False),
    )
    op.create_index("desk_sessions_user", "desk_sessions", ["user"])
    op.create_table(
        "desk_claims",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("post_id", sa.Text, primary_key=True),
        sa.Column("user", _NAME, sa.ForeignKey("desk_users.name"), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("nonce", _NAME, nullable=False),
        sa.Column("until", _TIME, nullable=False),
    )
    op.create_index("desk_claims_user", "desk_claims", ["user"])


def _reviews() -> None:
    op.create_table(
        "desk_reviews",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("nonce", _NAME, nullable=False, unique=True),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("reviewer", _NAME, sa.ForeignKey("desk_users.name"), nullable=False),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("post_id", sa.Text, nullable=False),
        sa.Column("history_id", _ID, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("policy_version", sa.Text),
        sa.Column("input_sha256", sa.Text),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("label", sa.Integer),
        sa.Column("answers", _JSON, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("undoes", _ID, sa.ForeignKey("desk_reviews.id")),
    )
    op.create_index("desk_reviews_post", "desk_reviews", ["model_name", "post_id"])
    op.create_index("desk_reviews_reviewer", "desk_reviews", ["reviewer", "model_name", "post_id"])
    op.create_index("desk_reviews_undoes", "desk_reviews", ["undoes"])
    _refuse_changes()
    op.create_table(
        "desk_labels",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("post_id", sa.Text, primary_key=True),
        sa.Column("input_sha256", sa.Text),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("first_by", _NAME, nullable=False),
        sa.Column("second_by", _NAME),
        sa.Column("label", sa.Integer),
        sa.Column("answers", _JSON, nullable=False),
        sa.Column("at", _TIME, nullable=False),
    )
    op.create_index("desk_labels_state", "desk_labels", ["model_name", "state", "at"])
    op.create_table(
        "desk_gold",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("post_id", sa.Text, primary_key=True),
        sa.Column("label", sa.Integer, nullable=False),
        sa.Column("answers", _JSON, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("added_by", _NAME, nullable=False),
        sa.Column("at", _TIME, nullable=False),
    )


def _refuse_changes() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER desk_reviews_{verb.lower()} BEFORE {verb} ON desk_reviews "
                "BEGIN SELECT RAISE(ABORT, 'desk_reviews is append-only'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION desk_reviews_stay() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'desk_reviews is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER desk_reviews_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON desk_reviews "
        "FOR EACH STATEMENT EXECUTE FUNCTION desk_reviews_stay()"
    )
