"""The same command makes again what is gone."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import click
import pytest
from zenml import step
from zenml.client import Client
from zenml.enums import StackComponentType

from model.errors import ImageError
from pipelines.entry import CheckedPipeline
from steps.settings import TrainingSettings

RAN: list[str] = []
CHANGED: list[str] = []


@step
def ingest() -> Annotated[dict[str, str], "posts"]:
    RAN.append("ingest")
    return {"image": "as ingest read it"}


@step
def preprocess(posts: dict[str, str]) -> Annotated[dict[str, str], "shards"]:
    RAN.append("preprocess")
    if CHANGED:
        raise ImageError(CHANGED.pop())
    return {**posts, "frame": "made of it"}


@step(enable_cache=False)
def promote(shards: dict[str, str]) -> None:
    RAN.append("promote")


def _path_of_a_post(options: dict[str, Any] | None = None) -> None:
    promote(preprocess(ingest()))


@pytest.fixture(scope="module")
def small(made_zenml: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckedPipeline]:
    from tests.support.zenml import zenml_of_its_own

    with zenml_of_its_own(tmp_path_factory.mktemp("zenml"), made_zenml):
        parts = (StackComponentType.ORCHESTRATOR, StackComponentType.ARTIFACT_STORE)
        Client().create_stack("own", components=dict.fromkeys(parts, "default"))
        Client().activate_stack("own")
        yield CheckedPipeline(name="small", entrypoint=_path_of_a_post, kind=TrainingSettings)


def started(pipeline: CheckedPipeline) -> list[str]:
    """The steps that ran, and were not taken from the cache."""
    RAN.clear()
    pipeline()
    return list(RAN)


@pytest.fixture
def run(small: CheckedPipeline) -> CheckedPipeline:
    started(small)
    assert started(small) == ["promote"], "the others are cached"
    return small


def folder(artifact: str) -> Path:
    return Path(Client().get_artifact_version(artifact).uri)


def cut(path: Path) -> None:
    file = max(path.iterdir(), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])


def one_file_less(path: Path) -> None:
    max(path.iterdir(), key=lambda file: file.stat().st_size).unlink()


@pytest.mark.parametrize("lose", [shutil.rmtree, cut, one_file_less])
def test_the_same_command_runs_a_cached_step_again_whose_output_is_gone(
    run: CheckedPipeline, lose: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lose(folder("shards"))
    with caplog.at_level(logging.WARNING):
        assert started(run) == ["preprocess", "promote"]
    assert "output shards of step preprocess is gone" in caplog.text
    assert caplog.text.count("output shards") == 1
    lose(folder("posts"))
    assert started(run) == ["ingest", "promote"], "the posts are the same: so are the shards"
    assert started(run) == ["promote"]


def test_an_image_that_changed_unseen_is_ingested_anew_by_the_same_command(run: CheckedPipeline) -> None:
    for _ in range(2):  # where the first ingest is cached, and where it is the second's
        shutil.rmtree(folder("shards"))
        CHANGED.append("a.jpg: not the file that was ingested")
        with pytest.raises(click.ClickException, match="not the file that was ingested"):
            started(run)
        assert RAN == ["preprocess"]
        assert started(run) == ["ingest", "preprocess", "promote"]
