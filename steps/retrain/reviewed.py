"""The tables of the review desk, and the labels that people gave there. `scoring.desk` fills them.

`desk_reviews` is append-only: the database itself refuses a change. `desk_labels` has one row per model and post, what
the reviews of it come to; an undone review is followed by a row that names it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    inspect,
    select,
)

from model.errors import StoreError
from steps.database import explained, open_engine
from steps.retrain.stored import METADATA, STORE, UtcTime

_ID = BigInteger().with_variant(Integer, "sqlite")
_JSON = JSON(none_as_null=True)

USERS = Table(
    "desk_users",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("password", Text),  # of scrypt, with its salt; NULL: none was chosen yet
    Column("active", Boolean, nullable=False),
    Column("hidden", Boolean, nullable=False),  # pictures are blurred and grey until asked
    Column("created_at", UtcTime, nullable=False),
    # a link that lets the user in once; only its hash is kept
    Column("link_sha256", String(64)),
    Column("link_until", UtcTime),
)
SESSIONS = Table(
    "desk_sessions",
    METADATA,
    Column("token_sha256", String(64), primary_key=True),
    Column("user", String(64), ForeignKey(USERS.c.name), nullable=False),
    Column("until", UtcTime, nullable=False),
    Index("desk_sessions_user", "user"),
)
CLAIMS = Table(
    "desk_claims",
    METADATA,
    Column("model_name", Text, primary_key=True),
    Column("post_id", Text, primary_key=True),
    Column("user", String(64), ForeignKey(USERS.c.name), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("nonce", String(64), nullable=False),  # of the form that decides: it is taken once
    Column("until", UtcTime, nullable=False),
    Index("desk_claims_user", "user"),
)
REVIEWS = Table(
    "desk_reviews",
    METADATA,
    Column("id", _ID, primary_key=True),
    Column("nonce", String(64), nullable=False, unique=True),
    Column("at", UtcTime, nullable=False),
    Column("reviewer", String(64), ForeignKey(USERS.c.name), nullable=False),
    Column("model_name", Text, nullable=False),
    Column("post_id", Text, nullable=False),
    # what was shown
    Column("history_id", _ID, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("policy_version", Text),
    Column("input_sha256", Text),
    Column("kind", String(16), nullable=False),  # first, second, final, gold; skip, undo
    Column("label", Integer),  # 1: of the positive class; NULL: skip, undo
    Column("answers", _JSON, nullable=False),  # question -> class index, of those that were answered
    Column("note", Text, nullable=False),
    Column("undoes", _ID, ForeignKey("desk_reviews.id")),
    Index("desk_reviews_model", "model_name", "id"),
    Index("desk_reviews_post", "model_name", "post_id"),
    Index("desk_reviews_reviewer", "reviewer", "model_name", "post_id"),
    Index("desk_reviews_undoes", "undoes"),
)
LABELS = Table(
    "desk_labels",
    METADATA,
    Column("model_name", Text, primary_key=True),
    Column("post_id", Text, primary_key=True),
    Column("input_sha256", Text),  # of the post that was looked at: a changed one is looked at again
    Column("state", String(16), nullable=False),  # second: one is awaited; disputed: the two differ; done
    Column("first_by", String(64), nullable=False),
    Column("second_by", String(64)),
    Column("label", Integer),  # NULL: disputed
    Column("answers", _JSON, nullable=False),
    Column("at", UtcTime, nullable=False),
    Index("desk_labels_state", "model_name", "state", "at"),
)
GOLD = Table(
    "desk_gold",
    METADATA,
    Column("model_name", Text, primary_key=True),
    Column("post_id", Text, primary_key=True),
    Column("label", Integer, nullable=False),
    Column("answers", _JSON, nullable=False),
    Column("why", Text, nullable=False),
    Column("added_by", String(64), nullable=False),
    Column("at", UtcTime, nullable=False),
)
POLICIES = Table(
    "desk_policies",
    METADATA,
    Column("id", _ID, primary_key=True),
    Column("nonce", String(64), nullable=False, unique=True),
    Column("version", Text, nullable=False),  # as records name it
    Column("text", Text, nullable=False),  # the file
    Column("proposed_by", String(64), nullable=False),
    Column("proposed_at", UtcTime, nullable=False),
    Column("why", Text, nullable=False),
    Column("confirmed_by", String(64)),
    Column("confirmed_at", UtcTime),
)


def _reviewed(url: str, model_name: str | None) -> list[dict[str, Any]]:
    engine, name = open_engine(url, STORE, must_exist=True)
    try:
        with explained(name, STORE), engine.connect() as connection:
            if not inspect(connection).has_table(LABELS.name):
                raise StoreError(
                    f"{STORE.what} {name}: nobody reviewed posts in it yet: `agentps desk` lets people do so"
                )
            query = select(LABELS.c.model_name, LABELS.c.post_id, LABELS.c.label, LABELS.c.answers).order_by(
                LABELS.c.at
            )
            query = query if model_name is None else query.where(LABELS.c.model_name == model_name)
            return [dict(row) for row in connection.execute(query).mappings()]
    finally:
        engine.dispose()


def reviewed_labels(url: str, model_name: str | None = None) -> dict[str, int]:
    """The label that people at the desk gave each post; two who differ have given none until a third decides.

    Args:
        model_name: whose posts; None: of any model, the label that was given last.

    Raises:
        StoreError: the store cannot be read, or is of before the desk.
    """
    return {row["post_id"]: row["label"] for row in _reviewed(url, model_name) if row["label"] is not None}


def reviewed_answers(url: str, model_name: str | None = None) -> dict[str, dict[str, int]]:
    """The same of the answers to the questions: post -> question -> class index."""
    return {row["post_id"]: dict(row["answers"]) for row in _reviewed(url, model_name) if row["answers"]}
