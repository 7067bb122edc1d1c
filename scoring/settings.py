"""The options of production scoring: sections `scoring`, `service`, `stream` of a run file. configs/ holds values."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from model.errors import ConfigError
from model.strict import Chosen
from steps.ingest.rows import absolute, is_url
from steps.paths import DEFAULT_CONFIG, REPOSITORY
from steps.settings import TrainingSettings, load_options

SCORING_CONFIG = REPOSITORY / "configs" / "scoring.yaml"
SERVICE_CONFIG = REPOSITORY / "configs" / "service.yaml"
STREAM_CONFIG = REPOSITORY / "configs" / "stream.yaml"


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


class ServiceSettings(Chosen):
    """`agentps serve`: section `service` of a run file. `configs/service.yaml` holds the values, and says more."""

    #: Whoever reaches this address may send posts.
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65_535)
    #: Tokens of a batch, pictures and texts, each post as long as the longest; None: as many posts as a micro-batch of
    #: the training had.
    batch_tokens: int | None = Field(ge=1)
    #: How long a batch waits for more posts where nothing is scored, in seconds.
    batch_wait: float = Field(ge=0, le=60)
    #: Posts that wait for their turn; who sends more gets 429.
    queue_posts: int = Field(ge=1, le=100_000)
    #: Bytes of all requests that are being read or wait.
    queue_bytes: int = Field(ge=1)
    #: Of one request.
    request_posts: int = Field(ge=1)
    request_bytes: int = Field(ge=1)
    #: Within which a request must have been sent whole, in seconds.
    request_seconds: float = Field(gt=0, le=3600)
    #: A folder, or an fsspec URL, whose files may be named as pictures; None: no path is read.
    image_root: str | None
    #: Hosts whose https URLs may be named as pictures, see `scoring.fetch.Fetch`.
    image_hosts: list[str]
    #: Seconds, from a request's arrival, that its pictures may take that are named by URLs.
    image_seconds: float = Field(gt=0, le=600)
    #: The file of the API keys that `agentps key` writes; None: nobody needs one.
    keys: str | None
    #: Threads of a batch; None: one core is left for the requests.
    threads: int | None = Field(ge=1)
    #: How often the registry is asked for the aliases, in seconds.
    poll: float = Field(gt=0, le=3600)
    #: Share of the posts that the challenger scores too; its records are kept beside.
    shadow_share: float = Field(ge=0, le=1)
    #: Seconds that requests which were taken have at the end.
    drain: float = Field(ge=0, le=3600)

    @field_validator("image_root")
    @classmethod
    def _folder(cls, value: str | None) -> str | None:
        if value is not None and is_url(value):
            from scoring.files import check_store  # who names no object store does without it

            try:
                check_store(value)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        elif value is not None and not (os.path.isabs(value) and os.path.isdir(value)):
            raise ValueError(f"{value!r}: the absolute path of a folder, the URL of one in an object store, or null")
        return value

    @field_validator("image_hosts")
    @classmethod
    def _hosts(cls, value: list[str]) -> list[str]:
        if value:
            from scoring.fetch import Host  # who reads no URL does without HTTP and TLS

            try:
                for entry in value:
                    Host.of(entry)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("keys")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None else os.path.abspath(value)  # a replica runs in another folder

    @model_validator(mode="after")
    def _known(self) -> ServiceSettings:
        if self.keys is None and not _is_local(self.host):
            raise ValueError(
                f"host {self.host} is reached from other machines, and nobody needs a key: set keys to a file, make "
                "the first key with `agentps key NAME -c FILE`, or take host 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _room(self) -> ServiceSettings:
        if self.request_posts > self.queue_posts:
            raise ValueError(f"request_posts {self.request_posts} is more than queue_posts {self.queue_posts} holds")
        if self.request_bytes > self.queue_bytes:
            raise ValueError(f"request_bytes {self.request_bytes} is more than queue_bytes {self.queue_bytes} holds")
        return self


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ServiceRunSettings(TrainingSettings):
    """All options of `agentps serve`. `task` and `register` name the model; no other is used."""

    defaults = (DEFAULT_CONFIG, SERVICE_CONFIG)

    service: ServiceSettings


def load_service(given: dict[str, Any] | None = None, source: str = "service") -> ServiceSettings:
    """`given` laid over the values of `configs/service.yaml`.

    Raises:
        ConfigError: names each key that is unknown or out of range.
    """
    return load_options(ServiceRunSettings, {"service": given}, source).service


class SqlSettings(Chosen):
    """Where a post's cells are looked up: the message names only its `post_id`."""

    #: SQLAlchemy's; `env:VARIABLE` where it holds a password.
    url: str
    #: Gives one row for `:post_id`: `title`, `text`, `video`, and `images`, a list, or a JSON list as text.
    query: str

    @field_validator("query")
    @classmethod
    def _by_post_id(cls, value: str) -> str:
        if ":post_id" not in value:
            raise ValueError("`:post_id` is expected in it: SELECT title, text, images FROM posts WHERE id = :post_id")
        return value


class StreamSettings(Chosen):
    """`agentps stream`: where posts come from, and where what is said of them goes: section `stream` of a run file.

    A URL may be `env:VARIABLE`, where it holds a password.
    """

    #: `kafka://HOST:PORT/TOPIC` (several hosts with commas), `amqp://HOST/QUEUE`, `nats://HOST/SUBJECT`,
    #: `redis://HOST/STREAM`, or a folder. Must be named.
    source: str | None
    #: Workers of one group share the messages.
    group: str = Field(pattern=r"^[\w.-]{1,200}$")
    #: Options of librdkafka for a source or sink `kafka://`, as `security.protocol`; a value may be `env:VARIABLE`.
    kafka: dict[str, str | int | float | bool]
    #: Messages between two commits, at most: all of them come again where the worker is killed.
    batch: int = Field(ge=1, le=10_000)
    #: The folder, or fsspec URL, that the paths of pictures in messages lie in. None: that of a folder source; no paths
    #: from a broker.
    images: str | None
    #: Hosts whose https URLs may be named as pictures, as in `service.image_hosts`; none: no URL is.
    image_hosts: tuple[Annotated[str, Field(min_length=1)], ...]
    #: Seconds between tries to read a picture that is not there yet; after the last one the message is a dead letter.
    #: The whole batch waits.
    picture_waits: tuple[float, ...]
    #: None: the message holds the post itself.
    sql: SqlSettings | None
    #: A policy file; None: no decision beyond the scores.
    policy: str | None
    #: The URL of a service that scores; None: this process does, with the champion.
    service: str | None
    #: Its key for this client, as `env:VARIABLE`.
    service_key: str | None = Field(pattern=r"^env:\w+$")
    #: Cores that a champion in this process computes on.
    threads: int = Field(ge=1, le=1_024)
    #: Seconds between two looks for a new champion.
    watch: float = Field(gt=0, le=3600)
    #: The database of records and dead letters; None: `retrain.scores` where that is one, else SQLite.
    store: str | None
    #: `HOST:PORT` where Prometheus finds the worker's metrics; None: nowhere. They hold no word of a post, and whoever
    #: reaches the address reads them.
    metrics: str | None = Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}$")
    #: Where records also go: `kafka://HOST:PORT/TOPIC`, an `https://` address, or a folder for Parquet files.
    sinks: tuple[str, ...]

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


class StreamRunSettings(TrainingSettings):
    """All options of `agentps stream`. `task` and `register` name the model; of the others only `ingest` is used."""

    defaults = (DEFAULT_CONFIG, STREAM_CONFIG)

    stream: StreamSettings


def load_stream(given: dict[str, Any], source: str = "stream") -> StreamSettings:
    """`given` laid over the values of `configs/stream.yaml`.

    Raises:
        ConfigError: names each key that is unknown or out of range; or no source is named.
    """
    found = load_options(StreamRunSettings, {"stream": given}, source).stream
    if not found.source:
        raise ConfigError(f"{source}: stream.source: name a broker's URL or a folder (docs/stream.md)")
    return found
