"""The options of production scoring: section `scoring` of a run file. `configs/scoring.yaml` holds the values."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from model.errors import ConfigError
from model.strict import Chosen
from steps.ingest.rows import absolute, is_url
from steps.paths import DEFAULT_CONFIG, REPOSITORY
from steps.settings import TrainingSettings

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
