"""The batch interface, against a local server of files and batches that expires, fails and forgets."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from model.errors import AnnotationError
from model.task import load_task
from steps.annotate import batch, client
from steps.annotate.client import AnnotationResult, annotate_posts
from steps.annotate.ledger import Attempt, Ledger, Missing
from steps.annotate.plan import make_plan
from steps.annotate.prices import load_prices
from steps.annotate.requests import Requests
from steps.annotate.tally import CapReachedError
from tests.support.annotator import SOURCE, Loopback, Silent, annotating, completion, error, make_posts, settings_of

PRICE = load_prices()["gpt-4o"]
_FILE = re.compile(rb'filename="[^"]*"\r\n(?:[^\r\n]+\r\n)*\r\n(.*?)\r\n--', re.DOTALL)


class BatchServer(Loopback):
    """`/files`, `/batches` and single chat requests, kept in memory.

    Args:
        end: what becomes of a batch, given its number (from 1) and its requests: (status, results by custom_id);
            None: it goes on. A result is a body of HTTP 200, or (status, body).
        known: False: it has no such paths.
    """

    def __init__(
        self, end: Callable[[int, list[Any]], tuple[str, dict[str, Any]] | None], *, known: bool = True
    ) -> None:
        self.end = end
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.chats = 0
        self.page: bytes | None = None  # what it sends in place of all else
        self.instead: tuple[str, Any] | None = None  # what it sends for paths that begin so
        self.instead_status = 200
        self.drop_create = False  # the batch is created, but the client is not told
        outer, lock = self, threading.Lock()

        class Handler(Silent, BaseHTTPRequestHandler):
            def _send(self, body: Any, status: int = 200) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "text/html" if data.startswith(b"<html>") else "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _body(self) -> bytes:
                if self.headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(self.headers["content-length"]))
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data

            def do_POST(self) -> None:
                data = self._body()
                with lock:
                    if outer.page is not None:
                        self._send(outer.page)
                    elif outer.instead and outer.instead_status != 200 and self.path.startswith(outer.instead[0]):
                        self._send(outer.instead[1], outer.instead_status)
                    elif not known and self.path != "/v1/chat/completions":
                        self._send(error("no such path"), 404)
                    elif self.path == "/v1/files":
                        name = f"file-{len(outer.files)}"
                        found = _FILE.search(data)
                        assert found is not None
                        outer.files[name] = found[1]
                        self._send({"id": name, "object": "file", "bytes": len(found[1]), "created_at": 1,
                                    "filename": "x", "purpose": "batch", "status": "processed"})  # fmt: skip
                    elif self.path == "/v1/batches":
                        asked = json.loads(data)
                        name = f"batch-{len(outer.batches) + 1}"
                        outer.batches[name] = asked | {"id": name, "object": "batch", "created_at": 100,
                                                       "status": "in_progress"}  # fmt: skip
                        if outer.drop_create:
                            self.close_connection = True
                            return
                        self._send(outer.batches[name])
                    elif self.path == "/v1/chat/completions":
                        outer.chats += 1
                        self._send(completion())

            def do_GET(self) -> None:
                with lock:
                    if outer.instead and self.path.startswith(outer.instead[0]):
                        self._send(outer.instead[1])
                    elif not known or (self.path.startswith("/v1/batches/") and not outer.batches):
                        self._send(error("no such batch"), 404)
                    elif self.path.startswith("/v1/batches?"):
                        self._send({"object": "list", "data": list(outer.batches.values()), "has_more": False})
                    elif self.path.startswith("/v1/batches/"):
                        self._send(outer.look(self.path.rpartition("/")[2]))
                    else:
                        self._send(outer.files[self.path.split("/")[3]])

        super().__init__(Handler)

    def requests(self, name: str) -> list[Any]:
        """The requests of a batch, by its name."""
        return [json.loads(line) for line in self.files[self.batches[name]["input_file_id"]].splitlines()]

    def asked(self) -> list[str]:
        """The custom ids of all batches that were not failed as a whole."""
        served = [name for name, found in self.batches.items() if found["status"] != "failed"]
        return [request["custom_id"] for name in served for request in self.requests(name)]

    def look(self, name: str) -> dict[str, Any]:
        found = self.batches[name]
        if found["status"] != "in_progress":
            return found
        requests = self.requests(name)
        ended = self.end(int(name.split("-")[1]), requests)
        if ended is None:
            return found
        status, results = ended
        found |= {"status": status, f"{status}_at": 160}
        if status == "failed":
            found["errors"] = {
                "object": "list",
                "data": [{"code": "token_limit_exceeded", "message": "too many tokens"}],
            }
            return found
        good, bad = [], []
        for request in requests:
            id_, result = request["custom_id"], results.get(request["custom_id"])
            if result is None:
                expired = {"code": "batch_expired", "message": "This request could not be executed"}
                bad.append({"custom_id": id_, "response": None, "error": expired})
            elif isinstance(result, tuple):
                bad.append({"custom_id": id_, "response": {"status_code": result[0], "body": result[1]}, "error": None})
            else:
                good.append({"custom_id": id_, "response": {"status_code": 200, "body": result}, "error": None})
        for kind, lines in (("output", good), ("error", bad)):
            if lines:
                # the order is not that of the requests
                self.files[f"{kind}-{name}"] = "\n".join(json.dumps(line) for line in reversed(lines)).encode()
                found[f"{kind}_file_id"] = f"{kind}-{name}"
        return found


def all_answered(number: int, requests: list[Any]) -> tuple[str, dict[str, Any]]:
    return "completed", {request["custom_id"]: completion() for request in requests}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_FIRST_POLL", 0.02)
    monkeypatch.setattr(batch, "_LONGEST_POLL", 0.1)
    monkeypatch.setattr(batch, "_HTTP_RETRIES", 0)
    monkeypatch.setattr(client, "_OTHERS_SECONDS", 0.02)


def run(posts: pd.DataFrame, ledger: Ledger, server: BatchServer, **changes: Any) -> AnnotationResult:
    settings = settings_of(**({"mode": "batch"} | changes))
    task = load_task("ucc")
    return annotate_posts(posts, task, settings, ledger, base_url=server.base_url, api_key="k", price=PRICE)


def test_a_batch_gives_what_single_requests_give_at_half_the_price(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 20)
    with BatchServer(all_answered) as server:
        result = run(posts, ledger, server)
        (sent,) = (server.requests(name) for name in server.batches)
        with Ledger(f"sqlite:///{tmp_path / 'other.db'}") as other:
            online = run(posts, other, server, mode="online")
    pd.testing.assert_frame_equal(result.labels, online.labels)
    assert result.cost == pytest.approx(online.cost / 2) == pytest.approx(20 * PRICE.dollars(100, 10) / 2)
    assert (result.asked, result.requests, result.missing) == (20, 20, 0)
    assert {(line["method"], line["url"]) for line in sent} == {("POST", "/v1/chat/completions")}
    assert sent[0]["body"]["messages"][0]["content"][1]["type"] == "image_url"
    assert ledger.batch_files(SOURCE) == []


def test_no_file_is_larger_than_documented(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (batch.MAX_REQUESTS, batch.MAX_BYTES) == (50_000, 200_000_000)
    monkeypatch.setattr(batch, "MAX_REQUESTS", 7)
    with BatchServer(all_answered) as server:
        assert run(make_posts(tmp_path, 20), ledger, server).missing == 0
        assert [len(server.requests(name)) for name in server.batches] == [7, 7, 6]
        size = max(len(data) for name, data in server.files.items() if name.startswith("file-"))
    monkeypatch.setattr(batch, "MAX_REQUESTS", 50_000)
    monkeypatch.setattr(batch, "MAX_BYTES", size)
    with BatchServer(all_answered) as server:
        assert run(make_posts(tmp_path, 21), ledger, server).missing == 0
        sizes = [len(data) for name, data in server.files.items() if name.startswith("file-")]
        assert len(sizes) >= 3
        assert max(sizes) <= size
    monkeypatch.setattr(batch, "MAX_BYTES", 100)
    with BatchServer(all_answered) as server, pytest.raises(AnnotationError, match=r"post train0: its request has"):
        run(make_posts(tmp_path, 1), ledger, server)


def test_of_an_expired_batch_the_finished_part_is_kept_and_only_the_rest_is_sent_again(
    tmp_path: Path, ledger: Ledger
) -> None:
    def half_first(number: int, requests: list[Any]) -> tuple[str, dict[str, Any]]:
        if number > 1:
            return all_answered(number, requests)
        return "expired", {request["custom_id"]: completion() for request in requests[::2]}

    with BatchServer(half_first) as server:
        result = run(make_posts(tmp_path, 20), ledger, server)
        first, second = (server.requests(name) for name in server.batches)
    assert result.missing == 0
    assert [line["custom_id"] for line in second] == [line["custom_id"] for line in first[1::2]]
    assert result.cost == pytest.approx(20 * PRICE.dollars(100, 10) / 2)


def test_a_failed_batch_file_is_sent_again_and_the_others_are_not(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MAX_REQUESTS", 10)

    def second_fails(number: int, requests: list[Any]) -> tuple[str, dict[str, Any]]:
        return ("failed", {}) if number == 2 else all_answered(number, requests)

    with BatchServer(second_fails) as server:
        assert run(make_posts(tmp_path, 30), ledger, server).missing == 0
        sent = [[line["custom_id"] for line in server.requests(name)] for name in server.batches]
    assert len(sent) == 4
    assert sent[3] == sent[1]


def test_batches_that_always_fail_end_the_run_with_their_own_message(tmp_path: Path, ledger: Ledger) -> None:
    with BatchServer(lambda number, requests: ("failed", {})) as server:
        with pytest.raises(AnnotationError, match=r"sent up 3 times and never served \(too many tokens\)"):
            run(make_posts(tmp_path, 3), ledger, server)
        assert len(server.batches) == 3
        server.end = all_answered
        assert run(make_posts(tmp_path, 3), ledger, server).missing == 0


def test_refusals_are_asked_again_as_allowed_and_rejected_requests_are_not(tmp_path: Path, ledger: Ledger) -> None:
    def end(number: int, requests: list[Any]) -> tuple[str, dict[str, Any]]:
        results: dict[str, Any] = {request["custom_id"]: completion() for request in requests}
        for request in requests:
            if "title 0" in str(request):
                results[request["custom_id"]] = completion(None, refusal="no")
            if "title 1" in str(request):
                results[request["custom_id"]] = (400, {"error": {"message": "bad image", "code": "x", "type": "y"}})
        return "completed", results

    with BatchServer(end) as server:
        result = run(make_posts(tmp_path, 5), ledger, server, retries=1)
        sizes = [len(server.requests(name)) for name in server.batches]
    assert result.labels["missing_reason"].tolist() == ["refusal", "request rejected", None, None, None]
    assert sizes == [5, 1]


def test_a_field_that_the_model_does_not_take_is_left_out_of_the_next_file(tmp_path: Path, ledger: Ledger) -> None:
    def picky(number: int, requests: list[Any]) -> tuple[str, dict[str, Any]]:
        results: dict[str, Any] = {}
        for request in requests:
            for name in ("max_tokens", "temperature"):
                if name in request["body"]:
                    refused = error(f"Unsupported parameter: '{name}'", param=name, code="unsupported_parameter")
                    results[request["custom_id"]] = (400, refused)
                    break
            else:
                results[request["custom_id"]] = completion()
        return "completed", results

    with BatchServer(picky) as server:
        result = run(make_posts(tmp_path, 5), ledger, server)
        bodies = [server.requests(name)[0]["body"] for name in server.batches]
        assert (result.missing, result.asked, len(bodies)) == (0, 5, 3)
        assert "max_completion_tokens" in bodies[2]
        with pytest.raises(AnnotationError, match=r"Unsupported parameter: 'temperature'.*request_fields"):
            run(make_posts(tmp_path, 6), ledger, server, request_fields={"temperature": 1})
    assert result.cost == pytest.approx(5 * PRICE.dollars(100, 10) / 2)


def test_lines_are_read_as_single_replies_are(tmp_path: Path, ledger: Ledger) -> None:
    flagged = (403, error("Your input was flagged", metadata={"reasons": ["x"]}))
    lines = {"title 0": flagged, "title 1": error("slow", code=429), "title 2": (503, "<html>busy</html>")}

    def end(number: int, requests: list[Any]) -> tuple[str, dict[str, Any]]:
        def result(request: Any) -> Any:
            return next((line for title, line in lines.items() if title in str(request)), completion())

        return "completed", {request["custom_id"]: result(request) for request in requests}

    with BatchServer(end) as server:
        result = run(make_posts(tmp_path, 4), ledger, server)
        assert [len(server.requests(name)) for name in server.batches] == [4, 2, 2]
    assert result.labels["missing_reason"].tolist() == ["content filter", "rate limited", "server error", None]
    assert result.cost == pytest.approx(PRICE.dollars(100, 10) / 2)


def test_a_line_that_every_other_would_meet_ends_the_run_after_the_rest_is_recorded(
    tmp_path: Path, ledger: Ledger
) -> None:
    def end(number: int, requests: list[Any]) -> tuple[str, dict[str, Any]]:
        spent = (429, error("You exceeded your current quota", code="insufficient_quota"))
        answers = {request["custom_id"]: completion() for request in requests[:3]}
        return "completed", answers | {request["custom_id"]: spent for request in requests[3:]}

    with BatchServer(end) as server:
        with pytest.raises(AnnotationError, match=r"exceeded your current quota; add credit"):
            run(make_posts(tmp_path, 5), ledger, server)
        assert len(server.batches) == 1
        server.end = all_answered
        result = run(make_posts(tmp_path, 5), ledger, server)
    assert (result.reused, result.asked, result.missing) == (3, 2, 0)


def test_a_line_of_no_request_of_ours_a_second_one_and_a_broken_one_change_nothing(
    tmp_path: Path, ledger: Ledger
) -> None:
    with BatchServer(all_answered) as server:
        look = server.look

        def worse(name: str) -> dict[str, Any]:
            found = look(name)
            if (file := found.get("output_file_id")) and b"stranger" not in server.files[file]:
                lines = server.files[file].splitlines()
                stranger = b'{"custom_id": "stranger", "response": {"status_code": 200, "body": {}}}'
                server.files[file] = b"\n".join([stranger, *lines, lines[0], b"[1]", b'{"custom_id": "cu'])
            return found

        server.look = worse  # type: ignore[method-assign]
        result = run(make_posts(tmp_path, 4), ledger, server)
    assert (result.missing, result.completion_tokens) == (0, 40)


def sent_and_killed(posts: pd.DataFrame, folder: Path, ledger: Ledger, server: BatchServer, files: int) -> None:
    """A run whose process is killed as soon as the endpoint has so many batch files."""
    posts.to_parquet(folder / "posts.parquet")
    with annotating(folder, server.base_url, mode="batch") as process:
        deadline = time.monotonic() + 30
        while sum(batch_file.batch_id is not None for batch_file in ledger.batch_files(SOURCE)) < files:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()


def unless(ready: threading.Event) -> BatchServer:
    """All is answered, but not before `ready`."""
    return BatchServer(lambda number, requests: all_answered(number, requests) if ready.is_set() else None)


def test_killed_between_upload_and_download_the_next_run_collects_and_asks_nothing_again(
    tmp_path: Path, ledger: Ledger
) -> None:
    posts = make_posts(tmp_path, 30)
    ready = threading.Event()
    with unless(ready) as server:
        sent_and_killed(posts, tmp_path, ledger, server, 3)
        plan, _ = make_plan(Requests(posts, load_task("ucc"), settings_of(), PRICE), ledger)
        assert (plan.under_way, plan.to_ask) == (30, 0)
        with annotating(tmp_path, server.base_url, mode="batch") as process:  # finds them, and finds them unfinished
            time.sleep(2)
            process.kill()
        ready.set()
        result = run(posts, ledger, server)
        assert (result.missing, result.asked) == (0, 0)
        assert len(server.asked()) == len(set(server.asked())) == 30


def test_toggled_to_single_requests_what_lies_in_a_batch_is_waited_for(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 30)
    ready = threading.Event()
    with unless(ready) as server:
        sent_and_killed(posts.iloc[:20], tmp_path, ledger, server, 2)
        timer = threading.Timer(0.5, ready.set)
        timer.start()
        result = run(posts, ledger, server, mode="online")
        timer.join()
        assert (result.missing, result.asked, server.chats) == (0, 10, 10)
        assert len(server.batches) == 2
        assert run(posts, ledger, server).asked == 0


def test_in_single_mode_a_cap_that_a_batch_fills_is_waited_out(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 12)
    ready = threading.Event()
    with unless(ready) as server:
        sent_and_killed(posts.iloc[:10], tmp_path, ledger, server, 1)
        (batch_file,) = ledger.batch_files(SOURCE)
        timer = threading.Timer(0.5, ready.set)
        timer.start()
        # the batch owes all but a hair of the cap; once collected it took little of it
        result = run(posts, ledger, server, mode="online", max_cost=batch_file.reserved * 1.01)
        timer.join()
    assert (result.missing, result.asked, server.chats) == (0, 2, 2)
    assert ledger.spent() == pytest.approx(12 * PRICE.dollars(100, 10) - 10 * PRICE.dollars(100, 10) / 2)


def test_a_batch_whose_creation_was_not_told_is_not_created_again(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_HTTP_RETRIES", 3)
    with BatchServer(all_answered) as server:
        server.drop_create = True
        result = run(make_posts(tmp_path, 5), ledger, server)
    assert (result.missing, len(server.batches)) == (0, 1)


def test_an_answer_is_asked_again_as_often_as_allowed_however_often_that_is(tmp_path: Path, ledger: Ledger) -> None:
    def refused(number: int, requests: list[Any]) -> tuple[str, dict[str, Any]]:
        return "completed", {request["custom_id"]: completion(None, refusal="no") for request in requests}

    with BatchServer(refused) as server:
        result = run(make_posts(tmp_path, 2), ledger, server, retries=4)
        assert len(server.batches) == 5
    assert result.labels["missing_reason"].tolist() == ["refusal", "refusal"]
    assert result.asked == 2


def test_a_batch_that_the_endpoint_does_not_know_is_named_and_can_be_given_up(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 3)
    with unless(threading.Event()) as server:
        sent_and_killed(posts, tmp_path, ledger, server, 1)
    with BatchServer(all_answered) as other:
        with pytest.raises(AnnotationError, match=r"batch batch-1, which holds requests of an earlier run.*not known"):
            run(posts, ledger, other)
        assert other.batches == {}
        with sqlite3.connect(tmp_path / "ledger.db") as database:
            database.execute("UPDATE annotation_shards SET file_id = NULL, batch_id = NULL")
        assert run(posts, ledger, other).missing == 0


def test_a_batch_whose_name_never_arrived_is_found_by_its_metadata(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 5)
    with BatchServer(all_answered) as server:
        server.drop_create = True
        with pytest.raises(AnnotationError, match="the batch interface: Connection error"):
            run(posts, ledger, server)
        assert [batch_file.batch_id for batch_file in ledger.batch_files(SOURCE)] == [None]
        server.drop_create = False
        result = run(posts, ledger, server)
        assert (result.missing, result.asked, len(server.batches)) == (0, 0, 1)


def test_a_batch_file_that_was_never_sent_is_given_up_and_sent_anew(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 5)
    with BatchServer(all_answered) as server:
        server.files.clear()
        with sqlite3.connect(tmp_path / "ledger.db") as database:
            requests = Requests(posts, load_task("ucc"), settings_of())
            items = [[request.key, "p", 2, None, 0.01] for request in requests.distinct()]
            form = json.dumps({"task": load_task("ucc").model_dump(mode="json"), "format": "numbers"})
            row = ("s" * 32, SOURCE, form, json.dumps(items), None, None, 0.05, "2025-01-01 00:00:00.000000")
            database.execute("INSERT INTO annotation_shards VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            rows = [(item[0], f"shard:{'s' * 32}", None) for item in items]
            database.executemany("INSERT INTO annotation_leases VALUES (?, ?, ?)", rows)
        result = run(posts, ledger, server)
        assert (result.missing, result.asked, len(server.batches)) == (0, 5, 1)


def test_before_very_many_a_small_batch_tells_whether_there_is_hope(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 330)

    def cut(number: int, requests: list[Any]) -> tuple[str, dict[str, Any]]:
        answer = completion("0,1", finish_reason="length")
        return "completed", {request["custom_id"]: answer for request in requests}

    with BatchServer(cut) as server:
        for _ in range(2):
            with pytest.raises(AnnotationError, match=r"32 of 330 posts have no answer \(cut at max_tokens: 32\)"):
                run(posts, ledger, server, max_missing_share=0.2, retries=1)
        assert len(server.asked()) == 32
        server.end = all_answered
        assert run(posts, ledger, server, max_missing_share=0.2, max_tokens=500).missing == 0
        assert [len(server.requests(name)) for name in server.batches] == [32, 32, 298]
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        options = database.execute("SELECT options, COUNT(*) FROM annotation_answers GROUP BY 1 ORDER BY 2").fetchall()
    assert [(json.loads(text)["max_tokens"], n) for text, n in options] == [(64, 32), (500, 330)]


def test_a_batch_under_way_is_collected_though_there_is_no_hope_for_the_rest(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 40)
    ready = threading.Event()
    with unless(ready) as server:
        sent_and_killed(posts.iloc[:10], tmp_path, ledger, server, 1)
        for request in Requests(posts.iloc[10:], load_task("ucc"), settings_of()).distinct()[:20]:
            ledger.record(Attempt(request.key, 1, "p", SOURCE, "x", None, Missing.REFUSAL, 1, 1, 0.1))
        ready.set()
        with pytest.raises(AnnotationError, match="20 of 40 posts have no answer"):
            run(posts, ledger, server, max_missing_share=0.2)
        assert ledger.batch_files(SOURCE) == []
        assert len(server.asked()) == 10


def test_two_processes_send_no_request_up_twice(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 60)
    posts.to_parquet(tmp_path / "posts.parquet")
    with BatchServer(all_answered) as server:
        processes = [annotating(tmp_path, server.base_url, mode="batch") for _ in range(2)]
        ends = [process.communicate(timeout=60)[0] for process in processes]
        assert [end.split()[-1] for end in ends] == ["60", "60"]
        assert len(server.asked()) == len(set(server.asked())) == 60
        assert run(posts, ledger, server).asked == 0


def test_the_cap_holds_for_what_is_sent_up_and_the_next_run_goes_on(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 30)
    requests = Requests(posts, load_task("ucc"), settings_of(mode="batch"), PRICE)
    most = max(requests.most(request) for request in requests.distinct())
    with BatchServer(all_answered) as server:
        cost = PRICE.dollars(100, 10) / 2
        assert 5.5 * cost < most
        with pytest.raises(CapReachedError):
            run(posts, ledger, server, max_cost=most + 5.5 * cost)
        # one at a time: what came back for less than the most made room for the next, until six of them were paid
        assert ledger.spent() == pytest.approx(6 * cost)
        assert len(server.asked()) == 6
        assert run(posts, ledger, server).asked == 24


@pytest.mark.parametrize("path", ["/v1/batches/", "/v1/batches?", "/v1/files/"])
@pytest.mark.parametrize("page", [{"error": {"code": 503, "message": "busy"}}, b"<html>busy</html>", b""])
def test_an_error_in_a_reply_of_200_ends_the_run_and_the_next_one_collects_without_asking_again(
    path: str, page: Any, tmp_path: Path, ledger: Ledger
) -> None:
    posts = make_posts(tmp_path, 3)
    with BatchServer(all_answered) as server:
        if path == "/v1/batches?":  # a batch is looked for where nobody knows its name
            server.drop_create = True
            with pytest.raises(AnnotationError, match="check that the endpoint runs"):
                run(posts, ledger, server)
            server.drop_create = False
        server.instead = (path, page)
        with pytest.raises(AnnotationError, match="start the same command again"):
            run(posts, ledger, server)
        server.instead = None
        assert run(posts, ledger, server).missing == 0
        assert len(server.batches) == 1


def test_a_result_file_that_is_not_whole_is_not_recorded(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 3)
    with BatchServer(all_answered) as server:
        look = server.look

        def counted(name: str) -> dict[str, Any]:
            return look(name) | {"request_counts": {"total": 3, "completed": 3, "failed": 0}}

        server.look = counted  # type: ignore[method-assign]
        server.instead = ("/v1/files/output", b'{"custom_id": "x", "response": null}')
        with pytest.raises(AnnotationError, match="came 1 lines, but 3 of its requests were served"):
            run(posts, ledger, server)
        server.instead = None
        assert run(posts, ledger, server).missing == 0
        assert len(server.batches) == 1


def test_a_key_that_may_not_use_the_interface_is_named(tmp_path: Path, ledger: Ledger) -> None:
    with BatchServer(all_answered) as server:
        server.instead, server.instead_status = ("/v1/files", error("Incorrect API key")), 401
        with pytest.raises(AnnotationError, match=r"HTTP 401: Incorrect API key; check OPENAI_API_KEY"):
            run(make_posts(tmp_path, 1), ledger, server)


def test_an_endpoint_without_the_interface_is_one_clear_error_and_single_requests_go_on(
    tmp_path: Path, ledger: Ledger
) -> None:
    posts = make_posts(tmp_path, 1)
    with BatchServer(all_answered, known=False) as server:
        with pytest.raises(AnnotationError, match=r"no such path.*takes `annotate.mode: online` only"):
            run(posts, ledger, server)
        assert run(posts, ledger, server, mode="online").missing == 0
        server.page = b"<html>Sign in</html>"
        with pytest.raises(AnnotationError, match=r"replied with '<html>Sign in</html>' in place of"):
            run(make_posts(tmp_path, 2), ledger, server)
