"""What is away is waited for: service, store, database server; and what a signal does meanwhile."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from model.errors import StoreError
from scoring.app import create_app
from scoring.settings import StreamSettings, load_service
from scoring.store import Store
from scoring.stream.run import score_of, store_of, stream
from steps.paths import REPOSITORY
from tests.support.postgresql import Server
from tests.support.service import Stub, data_url, listening, picture
from tests.support.stream import INGEST, PICTURE, StubScore, settings

pytestmark = pytest.mark.usefixtures("agentps_home")


def drop(folder: Path, *ids: str, images: Sequence[str] = (PICTURE,)) -> Path:
    """A file of posts in the watched folder."""
    (folder / "in").mkdir(exist_ok=True)
    lines = [json.dumps({"post_id": name, "text": "x", "images": list(images)}) for name in ids]
    path = folder / "in" / "a.jsonl"
    path.write_text("\n".join(lines))
    return path


def go(chosen: StreamSettings, score: Any) -> str:
    said: list[str] = []
    stream(chosen, INGEST, score, said.append, once=True)
    return said[-1]


def test_a_service_scores_and_its_version_tells_what_is_unchanged(tmp_path: Path) -> None:
    stub = Stub()
    with listening(create_app(stub, load_service())) as url:
        chosen = settings(tmp_path, str(tmp_path / "in"), service=url)
        drop(tmp_path, "a", "b", images=[data_url(picture())])
        assert "2 posts scored, 0 unchanged" in go(chosen, score_of(chosen, "m"))
        drop(tmp_path, "a", "c", images=[data_url(picture())])
        assert "1 posts scored, 1 unchanged" in go(chosen, score_of(chosen, "m"))
    assert stub.calls == [["a", "b"], ["c"]]
    assert {record.model_version for record, _ in store_of(chosen).current(["a", "b", "c"]).values()} == {"7"}


def test_a_service_that_is_away_is_waited_for_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(create_app(Stub(), load_service())) as url:
        chosen = settings(tmp_path, str(tmp_path / "in"), service=url)
        score = score_of(chosen, "m")
        ask, failures = score._remote.ready, iter([1, 1])  # type: ignore[attr-defined]
        away = type(score)("http://127.0.0.1:9")._remote
        away._patience = 0
        monkeypatch.setattr(score._remote, "ready", lambda: away.ready() if next(failures, 0) else ask())  # type: ignore[attr-defined]
        drop(tmp_path, "a", images=[data_url(picture())])
        with caplog.at_level(logging.WARNING):
            assert "1 posts scored" in go(chosen, score)
    words = [record.message for record in caplog.records if record.name.endswith("waiting")]
    assert words[0].startswith("Waiting: http://127.0.0.1:9: no answer")
    assert words[1].startswith("It answers again, after")


def test_a_store_that_is_away_loses_and_commits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put, failures = Store.put, iter(range(3))

    def away(self: Store, scored: Any) -> int:
        if next(failures, None) is not None:
            raise StoreError("store x: locked")
        return put(self, scored)

    path = drop(tmp_path, "a", "b")
    monkeypatch.setattr(Store, "put", away)
    chosen, score = settings(tmp_path, str(tmp_path / "in")), StubScore()
    with caplog.at_level(logging.WARNING):
        assert "2 posts scored" in go(chosen, score)
    assert "Waiting: store x: locked; nothing is lost or committed meanwhile" in caplog.text
    assert score.asked == ["a", "b"], "only the writing is tried again"
    assert not path.exists()


def test_a_signal_while_something_is_away_ends_without_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", heard.append)

    def away(self: Store, scored: Any) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        raise StoreError("store x: locked")

    path = drop(tmp_path, "a")
    monkeypatch.setattr(Store, "put", away)
    chosen = settings(tmp_path, str(tmp_path / "in"))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        go(chosen, StubScore())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert path.exists(), "it comes again"
    assert store_of(chosen).current(["a"]) == {}


def test_a_database_server_that_is_restarted_costs_nothing(
    tmp_path: Path, postgresql_server: Server, postgresql_url: str
) -> None:
    class Restarting(StubScore):
        def __call__(self, inputs: Any, now: Any = None) -> Any:
            if len(self.asked) == 4:
                postgresql_server.stop()
                threading.Thread(target=lambda: (time.sleep(1), postgresql_server.start())).start()
            return super().__call__(inputs, now)

    ids = [f"p{k}" for k in range(12)]
    drop(tmp_path, *ids)
    chosen, score = settings(tmp_path, str(tmp_path / "in"), store=postgresql_url), Restarting()
    assert "12 posts scored" in go(chosen, score)
    assert score.asked == ids
    assert len(store_of(chosen).current(ids)) == 12


def test_a_fault_of_every_post_is_no_post_s_fault(tmp_path: Path) -> None:
    """A model on a card that is out of memory: the worker ends, and what it took comes again."""

    class Broken(StubScore):
        def __call__(self, inputs: Any, now: Any = None) -> Any:
            raise RuntimeError("out of memory")

    path = drop(tmp_path, "a", "b")
    chosen = settings(tmp_path, str(tmp_path / "in"))
    with pytest.raises(RuntimeError, match="out of memory"):
        go(chosen, Broken())
    assert path.exists()
    assert store_of(chosen).dead_letters() == []
    assert "2 posts scored" in go(chosen, StubScore())


def test_the_command_ends_by_sigterm_with_143_after_its_batch(tmp_path: Path) -> None:
    code = (
        "import json, sys, time\n"
        "from scoring.stream.run import stream\n"
        "from steps.lifetime import ends_by_signal\n"
        "from tests.support.stream import INGEST, StubScore, load_stream\n"
        "class Slow(StubScore):\n"
        "    def __call__(self, inputs, now=None):\n"
        "        print('begun', flush=True)\n"
        "        time.sleep(1)\n"
        "        return super().__call__(inputs, now)\n"
        "with ends_by_signal():\n"
        "    stream(load_stream(json.loads(sys.argv[1])), INGEST, Slow(), lambda _: None)\n"
    )
    path = drop(tmp_path, "a", "b", "c", "d", "e")
    chosen = settings(tmp_path, str(tmp_path / "in"), batch=2)
    command = [sys.executable, "-c", code, chosen.model_dump_json()]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert (process.returncode, "Ended by SIGTERM" in said, "Traceback" in said) == (143, True, False), said
    assert sorted(store_of(chosen).current(list("abcde"))) == ["a", "b"]
    assert path.exists(), "three of its posts are still to come"
