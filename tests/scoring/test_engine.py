"""The champion is followed while it scores; what cannot be loaded changes nothing; the challenger is in the shadow."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from model.errors import RegistryError
from model.settings import BackboneSettings
from scoring.engine import Engine, Shadow, drawn
from scoring.record import Record
from scoring.score import Input, LocalScore
from steps.register import registry
from tests.steps.register.test_registry import flip_one_bit
from tests.support.tiny import write_images
from tests.support.versions import point, register_versions, registry_in

NAME = "agentps-small"


@pytest.fixture(scope="module")
def versions(
    empty_database: Path, tiny_backbone: BackboneSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where four versions are registered."""
    folder = tmp_path_factory.mktemp("versions")
    shutil.copy(empty_database, folder / "mlflow.db")
    with registry_in(folder) as uri:
        register_versions(folder, tiny_backbone, NAME, 4)
        yield uri


@pytest.fixture
def engines(versions: str) -> Iterator[ExitStack]:
    """Version 1 is champion, and there is no challenger; what enters the stack is closed at the end."""
    point(NAME, registry.CHAMPION, "1")
    MlflowClient().delete_registered_model_alias(NAME, registry.CHALLENGER)
    with ExitStack() as stack:
        yield stack


def posts(folder: Path, count: int) -> list[Input]:
    pictures = [path.read_bytes() for path in write_images(folder, 3)]
    return [Input(f"post-{k}", f"title {k}", "", tuple(pictures[: 1 + k % 3])) for k in range(count)]


def until(true: object) -> None:
    end = time.monotonic() + 60
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_new_champion_takes_over_and_no_batch_is_of_two_versions(engines: ExitStack, tmp_path: Path) -> None:
    engine = Engine(NAME, poll=0.05)
    engines.callback(engine.close)
    expected = LocalScore.of(registry.get(NAME, "1"))(posts(tmp_path, 5))
    assert [record.score for record in engine(posts(tmp_path, 5))] == [record.score for record in expected]
    batches: list[set[str]] = []
    stop = threading.Event()

    def score() -> None:
        while not stop.is_set():
            batches.append({record.model_version for record in engine(posts(tmp_path, 4))})

    scoring = threading.Thread(target=score)
    scoring.start()
    engine.start()
    for version in ("2", "3", "1", "2"):
        point(NAME, registry.CHAMPION, version)
        until(lambda wanted=version: batches and batches[-1] == {wanted})
    stop.set()
    scoring.join()
    assert {len(batch) for batch in batches} == {1}
    assert set().union(*batches) == {"1", "2", "3"}


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving_and_says_so(
    engines: ExitStack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(NAME, poll=60)
    engines.callback(engine.close)
    flip_one_bit(registry.fetch(registry.get(NAME, "4")))
    point(NAME, registry.CHAMPION, "4")
    for _ in range(3):  # not loaded again at each look
        engine.look()
    assert engine.about.status.version == "1"
    assert engine.about.status.trouble == "version 4 cannot be loaded (CheckpointError)"
    assert [record.model_version for record in engine(posts(tmp_path, 2))] == ["1", "1"]
    assert [each.levelno for each in caplog.records if "version 4" in each.message] == [logging.ERROR]
    point(NAME, registry.CHAMPION, "3")
    engine.look()
    assert (engine.about.status.version, engine.about.status.trouble) == ("3", None)
    MlflowClient().delete_registered_model_alias(NAME, registry.CHAMPION)
    engine.look()
    assert (engine.about.status.version, engine.about.status.trouble) == ("3", "there is no champion any more")


def lost(name: str) -> dict[str, str]:
    raise RegistryError("no answer in time")


def test_a_registry_that_does_not_answer_leaves_the_old_one_serving(
    engines: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(NAME, poll=60)
    engines.callback(engine.close)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "aliases_of", lost)
        engine.look()
    assert engine.about.status.trouble == "the registry does not answer (RegistryError)"
    assert [record.model_version for record in engine(posts(tmp_path, 2))] == ["1", "1"]
    engine.look()
    assert engine.about.status.trouble is None


def test_the_challenger_scores_its_share_and_both_records_are_kept(engines: ExitStack, tmp_path: Path) -> None:
    shadow = Shadow(tmp_path / "shadow", 0.5)
    engine = Engine(NAME, poll=60, shadow=shadow)
    engines.callback(engine.close)
    sent = posts(tmp_path, 40)
    engine(sent)
    point(NAME, registry.CHALLENGER, "2")
    engine.look()
    assert engine.about.status.challenger == "2"
    served = engine([*sent, Input("bad", error="no image")])
    expected = [post.post_id for post in sent if drawn(post.post_id, 0.5)]
    until(lambda: shadow.counts.get("kept") == len(expected))
    (file,) = (tmp_path / "shadow").iterdir()
    pairs = [json.loads(line) for line in file.read_text().splitlines()]
    assert [pair["shadow"]["post_id"] for pair in pairs] == expected
    assert {pair["shadow"]["model_version"] for pair in pairs} == {"2"}
    assert [Record.model_validate(pair["served"]) for pair in pairs] == [r for r in served if r.post_id in expected]
    point(NAME, registry.CHAMPION, "2")
    engine.look()
    assert engine.about.status.challenger is None, "the champion needs no shadow of itself"


def test_a_slow_challenger_delays_nobody(engines: ExitStack, tmp_path: Path) -> None:
    shadow = Shadow(tmp_path / "shadow", 1)
    engine = Engine(NAME, poll=60, shadow=shadow)
    engines.callback(engine.close)
    hang = threading.Event()
    engines.callback(hang.set)

    class Slow:
        version = registry.get(NAME, "2")

        def __call__(self, inputs: object, now: object = None) -> list[Record]:
            hang.wait(60)
            raise RuntimeError("broken")

    shadow.take(Slow())  # type: ignore[arg-type]
    sent = posts(tmp_path, 40)
    for _ in range(8):
        assert len(engine(sent)) == 40
    until(lambda: shadow.counts.get("left out", 0) >= 8 * 40 - 256 - 1)
    hang.set()
    until(lambda: shadow.counts.get("failed", 0) >= 256)


def test_a_post_on_which_a_version_breaks_costs_no_other(
    engines: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(NAME, poll=60)
    engines.callback(engine.close)
    score = LocalScore.__call__

    def breaks(self: LocalScore, inputs: list[Input], now: object = None) -> list[Record]:
        if any(post.post_id == "post-1" and post.error is None for post in inputs):
            raise IndexError("secret")
        return score(self, inputs)

    monkeypatch.setattr(LocalScore, "__call__", breaks)
    found = engine(posts(tmp_path, 3))
    assert [record.error for record in found] == [None, "the version's code broke on it (IndexError)", None]


@pytest.mark.parametrize(("share", "least", "most"), [(0, 0, 0), (0.25, 200, 300), (1, 1000, 1000)])
def test_the_share_of_the_posts_is_drawn_by_their_ids(share: float, least: int, most: int) -> None:
    ids = [f"post {k}" for k in range(1000)]
    chosen = [post_id for post_id in ids if drawn(post_id, share)]
    assert least <= len(chosen) <= most
    assert chosen == [post_id for post_id in ids if drawn(post_id, share)]


def test_without_a_champion_nothing_is_served(versions: str) -> None:
    with pytest.raises(RegistryError, match="no champion yet"):
        Engine("agentps-none", poll=60)
