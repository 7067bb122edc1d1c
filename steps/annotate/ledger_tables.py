"""The tables of the annotation ledger."""

from __future__ import annotations

from sqlalchemy import JSON, Column, DateTime, Float, Integer, MetaData, String, Table, Text

#: A plain FLOAT of MySQL is too coarse for a time.
_DOUBLE = Float(53)
METADATA = MetaData()
ANSWERS = Table(
    "annotation_answers",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("key", String(64), nullable=False, index=True),
    # 1 for the first time that the key was asked; an unpaid attempt leaves the number to the next
    Column("attempt", Integer, nullable=False),
    Column("post_id", Text, nullable=False),  # for tracing: the key alone decides
    Column("model", Text, nullable=False),
    Column("raw", Text),
    Column("counts", JSON(none_as_null=True)),
    Column("missing", String(32)),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("latency", _DOUBLE, nullable=False),  # seconds
    Column("created", DateTime(timezone=True), nullable=False),
    Column("cost", _DOUBLE),  # dollars; NULL where the model had no price
    Column("options", Text),  # what the outcome depended on beside the key; NULL before it was kept
)
LEASES = Table(
    "annotation_leases",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("owner", String(128), nullable=False, index=True),
    Column("expires", _DOUBLE),  # seconds since the epoch; NULL: held by a batch file until that is collected
)
# "shard" was the word for a batch file when the first ledgers were made: the table's name stays, since it holds what
# was paid for, and so does the prefix of its leases' owners.
BATCH_FILES = Table(
    "annotation_shards",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("source", Text, nullable=False),
    # what reading the answers takes, so that any process can collect the batch file
    Column("form", JSON, nullable=False),
    Column("items", JSON, nullable=False),
    Column("file_id", Text),
    Column("batch_id", Text),
    Column("reserved", _DOUBLE, nullable=False),  # dollars, the most that it may cost
    Column("created", DateTime(timezone=True), nullable=False),
)
