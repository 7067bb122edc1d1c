"""Real versions in a real registry: which champion a candidate is held against, and when a person must decide."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from model.backbone import load_tokenizer
from model.errors import CheckpointError
from model.images import ImageLimits
from model.metrics import Calibration
from model.scorer import Scorer
from model.settings import BackboneSettings
from model.task import Task
from steps.evaluate.report import build_report
from steps.preprocess.shards import write_shards
from steps.promote import candidate
from steps.promote.candidate import Candidate
from steps.promote.gate import Decision
from steps.register import history, own_code, registry
from steps.settings import PromoteSettings, load_settings
from tests.steps.register.test_pyfunc import altered
from tests.support.posts import ingested
from tests.support.tiny import SEQUENCE, TASK, train_settings, write_checkpoint, write_images

NAME = "agentps-small"
N = 40
OTHER_TASK = TASK.model_copy(update={"version": 2})


def policy() -> PromoteSettings:
    return load_settings({"promote": {"floor": 0.0, "bootstrap": 100}}).promote


class Line:
    """Posts, and versions of a registry that were tested on them."""

    def __init__(self, folder: Path, backbone: BackboneSettings) -> None:
        images = [str(path) for path in write_images(folder, 5)]
        rng = np.random.default_rng(0)
        self.folder, self.backbone = folder, backbone
        posts = pd.DataFrame(
            {
                "post_id": [f"p{i}" for i in range(N)],
                "created_at": pd.Timestamp("2026-01-01", tz="UTC"),
                "title": [" ".join(rng.choice(["a", "walk", "sea", "light"], 1 + i % 4)) for i in range(N)],
                "text": "",
                "images": [[images[i % 5], images[(3 * i) % 5]] for i in range(N)],
                "label": pd.array([int(i % 5 == 0) for i in range(N)], dtype="Int8"),
                "split": "test",
                **{question: pd.array([0] * N, dtype="Int8") for question in TASK.question_ids},
            }
        )
        self.posts = ingested(posts, folder)
        limits = ImageLimits(max_bytes=10**7, max_pixels=10**7)
        write_shards(folder / "shards", self.posts, TASK, SEQUENCE, load_tokenizer(backbone), limits)

    def add(
        self,
        skill: float,
        task: Task = TASK,
        seed: int = 0,
        alarmed: str | None = None,
        limits: ImageLimits | None = None,
    ) -> Candidate:
        """A version whose claimed scores on the test posts are the label plus noise, `skill` apart."""
        rng = np.random.default_rng(seed)
        scores = 1 / (1 + np.exp(-(skill * (self.posts["label"] == 1) + 0.1 * rng.normal(size=N))))
        table = self.posts[["post_id", "split", "label", *TASK.question_ids]].assign(score=scores, logit=0.0)
        for question in TASK.questions:
            table[f"answer_{question.id}"], table[f"probability_{question.id}"] = question.classes[0], 1.0
        report = build_report(
            table, table, task, load_settings({"evaluate": {"bootstrap": 0}}).evaluate, variant="agentps", seed=0,
            backbone="tiny", annotator="human", annotated_missing_share={}, calibration=Calibration(),
        )  # fmt: skip
        checkpoint = write_checkpoint(
            self.folder / f"checkpoint-{seed}", self.backbone, train_settings(seed=seed), task
        )
        example = self.posts.iloc[:1][["title", "text", "images"]]
        self.version, _ = registry.register(checkpoint, report, table, task, example, name=NAME, tags={}, limits=limits)
        return Candidate(self.version, report, table, self.folder / "shards", self.posts, task, policy(), alarmed)

    def version_of(self, skill: float, limits: ImageLimits | None = None) -> registry.RegisteredVersion:
        self.add(skill, limits=limits)
        return self.version


@pytest.fixture
def line(tracking: Path, tiny_backbone: BackboneSettings) -> Line:
    return Line(tracking, tiny_backbone)


def test_the_champion_answers_the_candidates_posts_itself_and_a_rollback_is_not_undone(line: Line) -> None:
    first = line.add(3.0)
    assert history.settle(line.version, first.decide).verdict == "promoted"
    assert "champion" not in first.scores
    assert history.settle(line.version, first.decide).verdict == "already champion"

    champion = registry.fetch(line.version)
    second = line.add(4.0, seed=1)
    decision = history.settle(line.version, second.decide)
    # The champion's own network, untrained, is no match for what the candidate claims.
    assert decision.verdict == "promoted"
    assert decision.reason.startswith("average_precision +0.")
    assert decision.reason.endswith("against the champion on 40 test posts")
    expected = Scorer.from_directory(champion, image_root="/").score(line.posts)["score"]
    np.testing.assert_allclose(second.scores["champion"], expected, atol=1e-5)
    assert second.scores["post_id"].tolist() == line.posts["post_id"].tolist()

    history.rollback(NAME, "it flags holidays")
    again = history.settle(line.version, second.decide)
    assert again.verdict == "needs a person"
    assert again.reason.endswith("(it flags holidays)")
    assert history.sync(NAME).aliases == {"champion": "1", "previous": "2"}


@pytest.mark.parametrize(("alarmed", "said"), [("1", True), ("7", False), ("", False)])
def test_an_alarm_counts_against_the_version_that_raised_it_alone(line: Line, alarmed: str, said: bool) -> None:
    first = line.add(3.0)
    assert history.settle(line.version, first.decide).verdict == "promoted"
    second = line.add(4.0, seed=1, alarmed=alarmed)
    reason = history.settle(line.version, second.decide).reason
    assert ("which people's late labels speak against" in reason) == said


@pytest.mark.parametrize(("days", "stale"), [(400, True), (26_000, False)])
def test_a_clock_that_runs_decades_ahead_makes_no_champion_stale(
    line: Line, days: int, stale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = line.add(3.0)
    history.settle(line.version, first.decide)
    second = line.add(4.0, seed=1)
    state = history.sync(NAME)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=days)

    monkeypatch.setattr(candidate, "datetime", Clock)
    assert ("champion for 400 days" in second.decide(state).reason) == stale


def test_a_champion_of_another_task_is_not_compared_with(line: Line) -> None:
    first = line.add(3.0)
    history.settle(line.version, first.decide)
    other = line.add(4.0, OTHER_TASK, seed=1)
    decision = history.settle(line.version, other.decide)
    assert decision.verdict == "needs a person"
    assert decision.reason.endswith("the champion, version 1, answers another task: the two cannot be compared")


def test_a_champion_whose_files_were_changed_stops_the_gate(line: Line) -> None:
    first = line.add(3.0)
    history.settle(line.version, first.decide)
    path = registry.fetch(line.version) / "trained.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    second = line.add(4.0, seed=1)
    with pytest.raises(CheckpointError, match=r"trained\.safetensors has sha256"):
        history.settle(line.version, second.decide)
    assert history.sync(NAME).aliases == {"champion": "1"}


def test_a_champion_of_other_code_is_scored_by_its_own(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(registry, "MODEL", altered(line.folder / "altered"))
        history.settle(line.version_of(3.0), lambda state: Decision(verdict="promoted", reason=""))
    champion = registry.fetch(line.version)
    second = line.add(4.0, seed=1)
    history.settle(line.version, second.decide)
    expected = own_code.scorer_of(champion).score(line.posts)["score"]
    np.testing.assert_allclose(second.scores["champion"], expected, atol=1e-6)
    ours = Scorer.from_directory(champion, image_root="/").score(line.posts)["score"]
    assert abs(expected - ours).max() > 0.01, "the two must differ, or nothing is compared"


def test_a_champion_that_cannot_read_a_test_post_is_left_to_a_person(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(registry, "MODEL", altered(line.folder / "altered"))
        small = ImageLimits(max_bytes=10**7, max_pixels=10)
        history.settle(line.version_of(3.0, limits=small), lambda state: Decision(verdict="promoted", reason=""))
    second = line.add(4.0, seed=1)
    decision = history.settle(line.version, second.decide)
    assert decision.verdict == "needs a person"
    assert (
        "the champion, version 1, cannot score 40 of the 40 test posts (row 1 (post 'p0'): image 1" in decision.reason
    )
