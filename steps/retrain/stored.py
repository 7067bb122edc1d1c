"""The store's tables, and what a retraining reads of them. `scoring.store` fills them, and keeps their form up to date.

`scoring_history` is append-only. `scoring_current` has one row per model and post, which names a row of the history;
what a page is sorted and filtered by stands there a second time, so that an index has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    select,
    true,
)
from sqlalchemy.types import TypeDecorator

from model.columns import DECISION, MODEL_VERSION, SCORE, SCORED_AT
from model.errors import StoreError
from model.schema import POST_ID
from steps.database import Kind, explained, open_engine


class UtcTime(TypeDecorator[datetime]):
    """A time with its zone, to the microsecond; SQLite itself keeps none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


COLUMNS = (POST_ID, SCORE, DECISION, MODEL_VERSION, SCORED_AT)
#: What the store has beside, where a policy was asked: see `scoring.policy.Outcome`.
ACTION, AUDIT, AUDIT_PROBABILITY = "action", "audit", "audit_probability"
POLICY_COLUMNS = (ACTION, AUDIT, AUDIT_PROBABILITY)
#: SQLite numbers rows by themselves only where the type is INTEGER.
_ID = BigInteger().with_variant(Integer, "sqlite")
_JSON = JSON(none_as_null=True)  # PostgreSQL's JSONB would put the keys in another order
_DOUBLE = Float(53)

METADATA = MetaData()
HISTORY = Table(
    "scoring_history",
    METADATA,
    Column("id", _ID, primary_key=True),
    # sha256 of post, model, version, policy, input hash and error: what was said once is not said twice
    Column("key", String(64), nullable=False, unique=True),
    Column("post_id", Text, nullable=False),
    Column("model_name", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("policy_version", Text),
    Column("input_sha256", Text),
    Column("scored_at", UtcTime, nullable=False),
    Column("latency_ms", _DOUBLE),
    Column("logit", _DOUBLE),
    Column("score", _DOUBLE),
    Column("decisions", _JSON, nullable=False),
    Column("answers", _JSON, nullable=False),
    Column("error", Text),
    # what the policy said; NULL: none was asked
    Column("action", String(16)),
    Column("reasons", _JSON),
    Column("audit", Boolean),
    Column("audit_probability", _DOUBLE),
    Index("scoring_history_post", "post_id"),
    Index("scoring_history_version", "model_name", "model_version", "scored_at"),
)
CURRENT = Table(
    "scoring_current",
    METADATA,
    Column("model_name", Text, primary_key=True),
    Column("post_id", Text, primary_key=True),
    Column("history_id", _ID, ForeignKey(HISTORY.c.id), nullable=False),
    # when this was said last: later than the history's where a post went back to what it had been
    Column("scored_at", UtcTime, nullable=False),
    Column("day", Date, nullable=False),  # of scored_at, in UTC
    Column("model_version", Text, nullable=False),
    Column("action", String(16)),
    Column("score", _DOUBLE),
    Column("audit", Boolean),
    # the number of the write that changed this row last, of its model: who keeps a copy finds what is new by it
    Column("change", _ID, nullable=False, server_default="0"),
    # nobody at the review desk has looked at the post as it is
    Column("waiting", Boolean, nullable=False, server_default=true()),
    Index("scoring_current_post", "post_id"),
    Index("scoring_current_change", "model_name", "change"),
    # the queues of the review desk: what waits, however much was done before
    Index("scoring_waiting_score", "model_name", "waiting", "score", "history_id"),
    Index("scoring_waiting_action", "model_name", "waiting", "action", "score", "history_id"),
    Index("scoring_waiting_audit", "model_name", "waiting", "audit", "score", "history_id"),
    Index("scoring_waiting_day", "model_name", "waiting", "day", "action", "score", "history_id"),
    Index("scoring_current_score", "model_name", "score", "history_id"),
    Index("scoring_current_day", "model_name", "day", "score", "history_id"),
    Index("scoring_current_version", "model_name", "model_version", "score", "history_id"),
    Index("scoring_current_action", "model_name", "action", "score", "history_id"),
    Index("scoring_current_audit", "model_name", "audit", "score", "history_id"),
)
DEAD_LETTERS = Table(
    "scoring_dead_letters",
    METADATA,
    Column("id", _ID, primary_key=True),
    Column("source", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("post_id", Text),
    Column("body", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("resolved_at", UtcTime),
    UniqueConstraint("source", "message_id"),
    Index("scoring_dead_letters_open", "resolved_at", "id"),
)
#: Alembic's own table: another application of the same server may have one, too.
VERSION_TABLE = "scoring_schema"

STORE = Kind(
    what="scores' store",
    option="retrain.scores or --scores",
    error=StoreError,
    backends=("sqlite", "postgresql"),
    server="postgresql://",
    kept="What was stored before is kept",
    lost="every score",
    table=VERSION_TABLE,
    remedies={"lock timeout": "Another process has been writing for 30 s: end it (`pg_stat_activity` names it)"},
)


def is_store(place: str) -> bool:
    """Whether it is the URL of a database, and not the path of a table."""
    return place.partition(":")[0].partition("+")[0] in (*STORE.backends, "postgres") and ":" in place


def scores_in(engine: Engine, model_name: str, point: str) -> Iterator[dict[str, Any]]:
    """Each score of a model, in the order of arrival, in the columns of a table of scored posts and those of a policy.

    Args:
        point: the operating point whose decision is told, as `p80`; None: a version that has none.
    """
    columns = [HISTORY.c[name] for name in (POST_ID, SCORE, "decisions", MODEL_VERSION, SCORED_AT, *POLICY_COLUMNS)]
    of_model = (HISTORY.c.model_name == model_name) & HISTORY.c.error.is_(None)
    wanted = select(*columns).where(of_model).order_by(HISTORY.c.id).execution_options(yield_per=10_000)
    with engine.connect() as connection:
        for row in connection.execute(wanted).mappings():
            cells = dict(row)
            yield cells | {DECISION: cells.pop("decisions").get(point)}


def read_stored(url: str, model_name: str, point: str) -> pd.DataFrame:
    """`scores_in` a store that is there; nothing is made or changed.

    Raises:
        StoreError: it cannot be read, or holds no tables yet.
    """
    engine, name = open_engine(url, STORE, must_exist=True)
    try:
        with explained(name, STORE):
            if not inspect(engine).has_table(HISTORY.name):
                raise StoreError(f"{STORE.what} {name}: it holds nothing yet; `agentps score` fills it")
            return pd.DataFrame(list(scores_in(engine, model_name, point)), columns=[*COLUMNS, *POLICY_COLUMNS])
    finally:
        engine.dispose()
