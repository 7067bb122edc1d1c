"""`agentps stream` and `dead-letters` with a real champion of a real registry."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from model.errors import ConfigError
from model.scorer import Scorer
from scoring.score import Input
from scoring.store import Store
from scoring.stream.scorers import ChampionScore
from steps.paths import REPOSITORY
from steps.register import registry
from tests.cli.test_registry import NAME, Add, add, call, config  # noqa: F401
from tests.support.tiny import write_images

POLICY = """
name: calm
version: 1
task: task.yaml
precision: 80
rules:
  - {name: never calm, when: "not calm", action: review}
"""


@pytest.fixture
def run_file(config: str, tmp_path: Path) -> str:  # noqa: F811
    (tmp_path / "in").mkdir()
    (tmp_path / "policy.yaml").write_text(POLICY)
    options = yaml.safe_load(Path(config).read_text())
    options["stream"] = {
        "source": str(tmp_path / "in"),
        "images": str(tmp_path),
        "picture_waits": [],
        "policy": str(tmp_path / "policy.yaml"),
        "store": f"sqlite:///{tmp_path / 'store.db'}",
    }
    Path(config).write_text(yaml.safe_dump(options))
    return config


def test_posts_of_a_folder_get_the_champion_s_scores_to_the_last_bit(
    add: Add,  # noqa: F811
    run_file: str,
    tmp_path: Path,
) -> None:
    images = [path.name for path in write_images(tmp_path, 3)]
    rows = [{"post_id": f"n{k}", "title": f"post {k}", "text": "", "images": images[: 1 + k % 3]} for k in range(6)]
    dropped = "".join(json.dumps(row) + "\n" for row in [*rows, {"post_id": "gone", "images": ["gone.png"]}])
    (tmp_path / "in" / "a.jsonl").write_text(dropped + "{\n")
    assert "no champion yet" in call("stream", "--once", "-c", run_file).output
    add(1.0, "promoted")
    done = call("stream", "--once", "-c", run_file)
    assert done.exit_code == 0, done.output
    assert "6 posts scored, 0 unchanged, 1 without a score, 2 dead letters" in done.stderr

    posts = pd.DataFrame(rows)
    posts["images"] = [[str(tmp_path / name) for name in row["images"]] for row in rows]
    expected = Scorer.from_directory(registry.fetch(registry.get(NAME, "1")), image_root="/").score(posts)
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    current = store.current([row["post_id"] for row in rows])
    assert [current[f"n{k}"][0].score for k in range(6)] == expected["score"].tolist()
    calm = [record.answers["calm"].answer for record, _ in current.values()]
    actions = [outcome.action for _, outcome in current.values() if outcome is not None]
    assert [action == "review" for action in actions] == [answer == "no" for answer in calm]
    assert {record.policy_version for record, _ in current.values()} == {current["n0"][1].policy_version}  # type: ignore[union-attr]

    listed = call("dead-letters", "list", "-c", run_file)
    assert re.search(r"a\.jsonl:7@[0-9a-f]{16} post gone: pictures: image 1: no such file\n", listed.stdout)
    assert listed.stderr == "2 dead letters\n"
    shutil.copy(tmp_path / images[0], tmp_path / "gone.png")
    assert "no open dead letter has the id 77" in call("dead-letters", "replay", "77", "-c", run_file).output
    replayed = call("dead-letters", "replay", "-c", run_file)
    assert replayed.stdout == "1 have a record now, 0 are left out (a newer one is there), 1 stay dead\n", (
        replayed.output
    )
    assert [letter.body for letter in store.dead_letters()] == [b"{\n"]

    add(2.0, "promoted", seed=1)
    (tmp_path / "in" / "b.jsonl").write_text(dropped)
    assert "7 posts scored, 0 unchanged" in call("stream", "--once", "-c", run_file).stderr, "by the new champion"
    (tmp_path / "in" / "c.jsonl").write_text(dropped)
    assert "0 posts scored, 7 unchanged" in call("stream", "--once", "-c", run_file).stderr
    assert len(store.history("n0")) == 2
    store.close()


def test_the_commands_of_the_page_do_what_it_says(
    add: Add,  # noqa: F811
    config: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = (REPOSITORY / "docs" / "stream.md").read_text(encoding="utf-8")
    commands = page.split("```bash\n")[1].split("```")[0].splitlines()
    add(1.0, "promoted")
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, 1)[0].rename("PICTURE.jpg")
    said = []
    for line in commands:
        words = shlex.split(line, comments=True)
        if words[0] == "agentps":
            done = call(*words[1:])
            assert done.exit_code == 0, done.output
            said.append(done.output)
        else:
            subprocess.run(line, shell=True, check=True)
        if "stream.yaml" in line and words[0] == "printf":  # with the model of this test
            Path("stream.yaml").write_text(Path("stream.yaml").read_text() + Path(config).read_text())
    assert [len(said), "1 dead letters" in said[0], "pictures: image 1: no such file" in said[1]] == [3, True, True]
    assert "1 have a record now" in said[2]


def test_a_promoted_version_scores_from_the_next_batch_and_a_broken_one_never(
    add: Add,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add(1.0, "promoted")
    post = Input("a", "t", "x", (write_images(tmp_path, 1)[0].read_bytes(),))
    refused: list[str] = []

    def check(task: object, points: object) -> None:
        if refused:
            raise ConfigError(refused[0])

    score = ChampionScore(NAME, watch=1e-9, check=check)
    assert score.renew()([post])[0].model_version == "1"
    add(2.0, "promoted", seed=1)
    assert score([post])[0].model_version == "1", "in the middle of a batch nothing changes"
    assert score.renew()([post])[0].model_version == "2"
    add(3.0, "promoted", seed=2)
    refused.append("the policy asks for p99")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert score.renew()([post])[0].model_version == "2"
    told = [record.message for record in caplog.records if "goes on scoring" in record.message]
    assert told == [f"{NAME} version 2 goes on scoring: the policy asks for p99"]
    refused.clear()
    shutil.rmtree(registry.folder_of(registry.get(NAME, "3")))
    assert score.renew()([post])[0].model_version == "2", "its files are gone"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "stream.source: name a broker's URL or a folder"),
        ({"source": "mqtt://host/topic"}, r"stream.source mqtt://host/topic: one of kafka://, amqp://"),
        ({"source": "kafka://h/t", "kafka": {"group.id": "x"}}, "group.id is set by the stream itself: remove it"),
        ({"source": "x", "sorce": "y"}, "stream.sorce: unknown key"),
        ({"source": "x", "picture_waits": [-1]}, "seconds of 0 or more are expected"),
    ],
)
def test_what_is_wrong_with_the_section_is_told(options: dict[str, object], message: str, tmp_path: Path) -> None:
    from scoring.settings import load_stream
    from scoring.stream.source import source_of

    with pytest.raises(ConfigError) as told:
        source_of(load_stream(options, "config x.yaml"))
    assert message in str(told.value)


@pytest.mark.parametrize(
    "url", ["nats://host/STREAM/subject", "amqp://host/queue", "redis://host/stream", "kafka://host/topic"]
)
def test_a_missing_package_is_one_message(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from scoring.settings import load_stream
    from scoring.stream.brokers import BROKERS
    from scoring.stream.source import source_of

    scheme = url.partition(":")[0]
    extra, module = ("stream", "confluent") if scheme == "kafka" else [BROKERS[scheme].extra] * 2
    monkeypatch.setitem(sys.modules, f"faststream.{module}", None)
    with pytest.raises(ConfigError, match=rf"a package is not installed: `pip install .*{extra}\]"):
        source_of(load_stream({"source": url}))
