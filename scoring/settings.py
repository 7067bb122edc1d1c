"""The options of production scoring: sections `scoring` (`configs/scoring.yaml` holds the values) and `stream`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from model.errors import ConfigError
from model.strict import Chosen
from steps.ingest.rows import absolute, is_url
from steps.paths import DEFAULT_CONFIG, REPOSITORY
from steps.settings import RunOptions, TrainingSettings

SCORING_CONFIG = REPOSITORY / "configs" / "scoring.yaml"


class ScoringSettings(Chosen):
    """A batch: which posts, where to, and how."""

    #: A manifest (JSON Lines, Parquet, CSV) or a folder of manifests; a path or an fsspec URL. Must be named.
    posts: str | None
    #: The folder of the records, local or shared; relative to the working directory. Must be named.
    output: str | None
    #: `ray`: the shards are spread over the cores and GPUs of this machine, or of the cluster at RAY_ADDRESS.
    engine: Literal["local", "ray"]
    #: A version's number; None: the champion.
    version: str | None
    #: Rows of the manifest for one file of records: what a killed run scores again, at most, for each worker.
    shard: int = Field(ge=1, le=1_000_000)
    #: Processes that score, with `engine: ray`; None: as many as the cores, or the GPUs, allow.
    workers: int | None = Field(ge=1, le=10_000)
    #: Cores that one process computes on.
    threads: int = Field(ge=1, le=1_024)

    def named(self) -> tuple[str, Path]:
        """Posts and output, as they are from everywhere.

        Raises:
            ConfigError: one of them is not named, or the output is no folder of this machine.
        """
        if not self.posts:
            raise ConfigError("scoring.posts: name a manifest (.jsonl, .parquet, .csv) or a folder of manifests")
        if not self.output:
            raise ConfigError("scoring.output: name a folder for the records")
        if is_url(self.output):
            raise ConfigError(f"scoring.output {self.output}: a folder of this machine is expected, or a mounted one")
        return absolute(self.posts), Path(self.output).resolve()


class ScoringRunSettings(TrainingSettings):
    """All options of `pipelines.agentps_scoring`. `task` and `register` name the model; no other is used."""

    defaults = (DEFAULT_CONFIG, SCORING_CONFIG)

    scoring: ScoringSettings


class SqlSettings(Chosen):
    """Where a post's cells are looked up: the message names only its `post_id`."""

    #: SQLAlchemy's; `env:VARIABLE` where it holds a password.
    url: str
    #: Gives one row with the columns `title`, `text` and `images` (a list, or a JSON list as text) for `:post_id`.
    query: str

    @field_validator("query")
    @classmethod
    def _by_post_id(cls, value: str) -> str:
        if ":post_id" not in value:
            raise ValueError("`:post_id` is expected in it: SELECT title, text, images FROM posts WHERE id = :post_id")
        return value


class StreamSettings(Chosen):
    """Where posts come from, and where what the champion says of them goes."""

    #: `kafka://HOST:PORT/TOPIC` (several hosts with commas), `amqp://HOST/QUEUE`, `nats://HOST/SUBJECT`,
    #: `redis://HOST/STREAM`, or a folder; `env:VARIABLE` where it holds a password.
    source: str
    #: Workers of one group share the messages.
    group: str = Field("agentps", pattern=r"^[\w.-]{1,200}$")
    #: Options of librdkafka for a `kafka://` source or sink, as `security.protocol`; a value may be `env:VARIABLE`.
    kafka: dict[str, str | int | float | bool] = {}
    #: Messages between two commits, at most: all of them come again where the worker is killed.
    batch: int = Field(64, ge=1, le=10_000)
    #: The folder that the paths of pictures in messages lie in. None: that of a folder source; no paths from a broker.
    images: str | None = None
    #: Seconds between tries to read a picture that is not there yet; after the last one the message is a dead letter.
    #: The whole batch waits.
    picture_waits: tuple[float, ...] = (0.2, 1.0)
    #: None: the message holds the post itself.
    sql: SqlSettings | None = None
    #: A policy file; None: no decision beyond the scores.
    policy: str | None = None
    #: The URL of a service that scores; None: this process does, with the champion.
    service: str | None = None
    #: Seconds between two looks for a new champion.
    watch: float = Field(10.0, gt=0)
    #: The database of records and dead letters. None: SQLite in the project's local state.
    store: str | None = None
    #: Where records also go: `kafka://HOST:PORT/TOPIC`, an `https://` address, or a folder for Parquet files.
    sinks: tuple[str, ...] = ()

    @field_validator("picture_waits")
    @classmethod
    def _seconds(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(wait < 0 for wait in value) or sum(value) > 120:
            raise ValueError("seconds of 0 or more are expected, of 120 in all at most")
        return value

    @field_validator("kafka")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = ("bootstrap.servers", "group.id", "enable.auto.", "auto.offset.", "enable.idempotence")
        if taken := [key for key in value if key.startswith(ours)]:
            raise ValueError(f"{taken[0]} is set by the stream itself: remove it")
        return value


class StreamRunSettings(RunOptions):
    """The section in its place."""

    stream: StreamSettings
