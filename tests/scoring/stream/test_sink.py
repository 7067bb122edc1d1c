"""Where records go: what is refused for ever is told apart from what is away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from model.errors import ConfigError
from scoring.policy import Outcome
from scoring.score import Input
from scoring.stream.run import replay, store_of, stream
from scoring.stream.sink import ParquetSink, WebhookSink, key, sink_of
from scoring.stream.waiting import AwayError
from tests.support.stream import INGEST, PICTURE, StubScore, settings

pytestmark = pytest.mark.usefixtures("agentps_home")
NOW = datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)
FLAG = Outcome(action="flag", reasons=("p80",), policy_version="p-1-x", audit=False, audit_probability=0.1)


def scored(*texts: str, now: datetime = NOW) -> list[Any]:
    records = StubScore()([Input(text, "t", text, (b"x",)) for text in texts], now)
    return [(record, FLAG) for record in records]


class Receiver:
    """A webhook that answers what it is told to, and keeps what it took."""

    def __init__(self, *answers: int) -> None:
        self.answers, self.taken, self.keys = list(answers), [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = outer.answers.pop(0) if outer.answers else 200
                outer.keys.append(self.headers["Idempotency-Key"])
                if status < 300:
                    outer.taken.append(content)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/secret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_webhook_that_is_away_gets_each_record_once_when_it_is_back(receiver: Receiver) -> None:
    receiver.answers = [200, 503]
    sink = WebhookSink(receiver.url)
    with pytest.raises(AwayError, match=r"^webhook:127\.0\.0\.1: 503") as told:
        sink.put(scored("a", "b", "c"))
    assert "secret" not in str(told.value)
    assert sink.put(scored("a", "b", "c")) == {}
    assert [found["record"]["post_id"] for found in receiver.taken] == ["a", "b", "c"]
    assert receiver.taken[0]["outcome"]["action"] == "flag"
    assert receiver.keys[1] == receiver.keys[2] == receiver.taken[1]["key"], "the same record has the same key"
    sink.put(scored("a"))
    assert len(receiver.taken) == 4, "in another batch it is another message"


def test_a_webhook_that_refuses_a_record_keeps_none_of_the_others(receiver: Receiver) -> None:
    receiver.answers = [400, 200, 500, 500, 500, 500, 500]
    sink = WebhookSink(receiver.url)
    for _ in range(sink.tries - 1):
        with pytest.raises(AwayError):
            sink.put(scored("a", "b", "c"))
    assert sink.put(scored("a", "b", "c")).keys() >= {2}
    assert [found["record"]["post_id"] for found in receiver.taken] == ["b"]


def test_what_a_sink_refuses_is_a_dead_letter_and_is_sent_again(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "in").mkdir()
    post = {"post_id": "a", "text": "x", "images": [PICTURE]}
    (tmp_path / "in" / "a.json").write_text(json.dumps(post))
    receiver.answers = [422]
    chosen = settings(tmp_path, str(tmp_path / "in"), sinks=[receiver.url])
    stream(chosen, INGEST, StubScore(), lambda _: None, once=True)
    store = store_of(chosen)
    (letter,) = store.dead_letters()
    assert letter.reason == "webhook:127.0.0.1 refused: answered 422 Unprocessable Entity"
    assert store.current(["a"])["a"][0].score == 0.1
    assert replay(chosen, INGEST, StubScore(), [letter]) == (1, 0, 0)
    assert store.dead_letters() == []
    assert [found["record"]["post_id"] for found in receiver.taken] == ["a"]


def test_parquet_has_a_folder_for_each_day_and_the_same_batch_once(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path / "out")
    batch = scored("a", "bb") + scored("c", now=NOW + timedelta(seconds=1))
    batch += [(StubScore()([Input("bad", error="image 1: no such file")], NOW)[0], None)]
    for _ in range(2):
        assert sink.put(batch) == {}
    table = ds.dataset(tmp_path / "out", partitioning="hive").to_table().to_pandas().set_index("post_id")
    assert table["day"].to_dict() == {"a": "2026-03-01", "bb": "2026-03-01", "bad": "2026-03-01", "c": "2026-03-02"}
    assert table["score"].dropna().to_dict() == {"a": 0.1, "bb": 0.2, "c": 0.1}
    assert table.loc["bad", "error"] == "image 1: no such file"
    assert table["action"].dropna().unique().tolist() == ["flag"]
    assert list(table.loc["a", "reasons"]) == ["p80"]


def test_the_key_is_that_of_content_version_and_policy() -> None:
    record = scored("a")[0][0]
    later = record.model_copy(update={"scored_at": NOW + timedelta(days=1), "latency_ms": 3.0})
    assert key(later) == key(record)
    others = [{"post_id": "b"}, {"model_version": "2"}, {"policy_version": "p"}, {"input_sha256": "0"}]
    assert len({key(record), *(key(record.model_copy(update=other)) for other in others)}) == 5


def test_a_sink_that_is_none_is_told_without_its_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stream\.sinks .*a folder is expected") as told:
        sink_of("ftp://user:secret-1@host/x", settings(tmp_path, "x"))
    assert "secret-1" not in str(told.value)
