"""Every post ends answered or missing with its reason, and none is asked, or paid, twice."""

from __future__ import annotations

import base64
import json
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from model.errors import AnnotationError
from model.task import Task, load_task
from steps.annotate import online
from steps.annotate.client import AnnotationResult, annotate_posts
from steps.annotate.ledger import UNPAID, Ledger, Missing
from steps.annotate.prices import Price, load_prices
from steps.annotate.requests import Requests
from steps.annotate.simulated import ACCURACY, SimulatedAnnotator
from steps.annotate.tally import CapReachedError, Progress
from tests.support.annotator import (
    COUNTS,
    N_IMAGES,
    SOURCE,
    Answer,
    Server,
    annotating,
    completion,
    error,
    make_posts,
    reply,
    settings_of,
)

# --- a run


@pytest.fixture
def posts(tmp_path: Path) -> pd.DataFrame:
    return make_posts(tmp_path, 1)


def run(
    posts: pd.DataFrame,
    ledger: Ledger,
    base_url: str,
    task: Task | None = None,
    price: Price | None = None,
    **changes: Any,
) -> AnnotationResult:
    settings = settings_of(**changes)
    return annotate_posts(
        posts, task or load_task("ucc"), settings, ledger, base_url=base_url, api_key="k", price=price
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of our own are short; those that the endpoint asks for stay."""
    monkeypatch.setattr(online, "_FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(online, "_LONGEST_BACKOFF", 0.05)
    monkeypatch.setattr(online, "_DOWN_AT_START_SECONDS", 0.2)


# --- answers


def test_counts_become_classes_by_the_rules_of_the_task(posts: pd.DataFrame, ledger: Ledger) -> None:
    with Server(lambda number, body: reply(completion("0,1,0,2,1"))) as server:
        result = run(posts, ledger, server.base_url)
    # of two images: watermark 0 >= 1 no; ugc 1/2 >= 0.5 yes; title 0 no; text 1.0 >= 0.5 yes; theme 0.5 >= 0.8 no
    row = result.labels.iloc[0]
    assert [row[id_] for id_ in load_task("ucc").question_ids] == [0, 1, 0, 1, 0]
    assert (row["post_id"], row["label_source"], row["missing_reason"]) == ("train0", SOURCE, None)
    assert {str(result.labels[id_].dtype) for id_ in ACCURACY} == {"Int8"}
    assert (result.asked, result.reused, result.missing, result.requests) == (1, 0, 0, 1)
    assert (result.prompt_tokens, result.completion_tokens) == (100, 10)


def test_the_request_has_the_form_of_the_protocol_and_the_settings(posts: pd.DataFrame, ledger: Ledger) -> None:
    with Server(lambda number, body: reply(completion())) as server:
        run(posts, ledger, server.base_url, detail="high", max_tokens=7)
    (request,) = server.requests
    content = request.pop("messages")[0]["content"]
    assert request == {"model": "gpt-4o", "max_tokens": 7, "temperature": 0}
    assert [part["type"] for part in content] == ["text", "image_url", "image_url"]
    assert content[1]["image_url"]["detail"] == "high"
    assert "title 0" in content[0]["text"]


def test_fields_of_the_settings_are_laid_over_a_request_and_none_removes_one(
    posts: pd.DataFrame, ledger: Ledger
) -> None:
    fields = {"temperature": None, "seed": 0, "provider": {"sort": "price"}, "response_format": None}
    with Server(lambda number, body: reply(completion())) as server:
        run(posts, ledger, server.base_url, request_fields=fields)
    (request,) = server.requests
    del request["messages"]
    assert request == {"model": "gpt-4o", "max_tokens": 64, "seed": 0, "provider": {"sort": "price"}}


def test_the_most_that_an_answer_costs_follows_the_limit_that_is_sent(posts: pd.DataFrame) -> None:
    fields = {"max_tokens": None, "max_completion_tokens": 2000}
    task = load_task("ucc")
    plain, longer = (Requests(posts, task, settings_of(request_fields=given)) for given in ({}, fields))
    (request,) = plain.distinct()
    assert (plain.tokens(request).most_completion, longer.tokens(request).most_completion) == (64, 2000)
    assert longer.fields() == {"max_completion_tokens": 2000, "temperature": 0}


def test_a_question_of_three_classes_is_read_by_its_class(posts: pd.DataFrame, ledger: Ledger) -> None:
    question = {"id": "q", "ask": "?", "annotate": "?", "answer": "class", "classes": ["no", "some", "all"]}
    final = {"ask": "Bad?", "classes": ["good", "bad"], "positive": "bad"}
    task = Task.model_validate({"name": "three", "version": 1, "questions": [question], "final": final})
    with Server(lambda number, body: reply(completion("3" if number == 1 else "2"))) as server:
        result = run(posts, ledger, server.base_url, task, retries=1)
    assert (result.labels["q"].tolist(), result.requests) == ([2], 2)  # 3 is no class: asked again


def test_place_in_a_photo_does_not_reach_the_endpoint(tmp_path: Path, ledger: Ledger) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825)[29] = "48.2082N"
    posts = make_posts(tmp_path, 1, exif=exif)
    assert b"48.2082N" in (tmp_path / posts["images"][0][0]).read_bytes()
    with Server(lambda number, body: reply(completion())) as server:
        run(posts, ledger, server.base_url)
    for part in server.requests[0]["messages"][0]["content"][1:]:
        sent = base64.b64decode(part["image_url"]["url"].partition(",")[2])
        assert b"48.2082N" not in sent
        assert b"Exif" not in sent


# --- never twice


def test_a_second_run_asks_nothing_and_an_added_post_is_one_request(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 12)
    with Server(lambda number, body: reply(completion())) as server:
        first = run(posts.iloc[:11], ledger, server.base_url)
        again = run(posts.iloc[:11], ledger, server.base_url)
        assert (again.asked, again.reused, again.requests) == (0, 11, 0)
        pd.testing.assert_frame_equal(first.labels, again.labels)
        added = run(posts, ledger, server.base_url)
        assert (added.asked, added.reused, added.requests) == (1, 11, 1)
    assert len(server.requests) == 12


def test_another_rule_reads_the_paid_answers_anew_and_another_wording_asks_again(
    posts: pd.DataFrame, ledger: Ledger
) -> None:
    task = load_task("ucc")
    strict = task.questions[1].model_copy(update={"rule": "share >= 0.9"})
    reworded = strict.model_copy(update={"annotate": "Count the selfies."})

    def with_ugc(question: Any) -> Task:
        return task.model_copy(update={"questions": (task.questions[0], question, *task.questions[2:])})

    with Server(lambda number, body: reply(completion("0,1,0,0,0"))) as server:
        assert run(posts, ledger, server.base_url).labels["ugc"].tolist() == [1]
        changed = run(posts, ledger, server.base_url, with_ugc(strict))
        assert (changed.labels["ugc"].tolist(), changed.requests) == ([0], 0)
        assert run(posts, ledger, server.base_url, with_ugc(reworded)).requests == 1


def test_posts_of_the_same_content_are_asked_once(posts: pd.DataFrame, ledger: Ledger) -> None:
    twins = pd.concat([posts, posts.assign(post_id="twin")], ignore_index=True)
    with Server(lambda number, body: reply(completion())) as server:
        result = run(twins, ledger, server.base_url)
    assert len(server.requests) == 1
    assert result.labels["post_id"].tolist() == ["train0", "twin"]
    assert result.labels["ugc"].notna().all()


def test_only_the_splits_of_the_settings_are_asked_in_the_order_of_the_posts(tmp_path: Path, ledger: Ledger) -> None:
    posts = pd.concat([make_posts(tmp_path, 2, "val"), make_posts(tmp_path, 3), make_posts(tmp_path, 4, "test")])
    with Server(lambda number, body: reply(completion())) as server:
        result = run(posts, ledger, server.base_url, splits=("train", "test"))
    assert result.labels["post_id"].tolist() == ["train0", "train1", "train2", "test0", "test1", "test2", "test3"]
    assert len(server.requests) == 7


def test_a_task_without_questions_asks_nothing(posts: pd.DataFrame, ledger: Ledger) -> None:
    task = load_task("ucc").model_copy(update={"questions": ()})
    result = run(posts, ledger, "http://127.0.0.1:9/v1", task)
    assert list(result.labels.columns) == ["post_id", "label_source", "missing_reason"]
    assert (result.asked, result.requests, result.missing) == (0, 0, 0)


def test_list_columns_may_be_arrays_as_after_a_parquet_round_trip(
    posts: pd.DataFrame, ledger: Ledger, tmp_path: Path
) -> None:
    posts.to_parquet(tmp_path / "posts.parquet")
    with Server(lambda number, body: reply(completion())) as server:
        run(posts, ledger, server.base_url)
        assert run(pd.read_parquet(tmp_path / "posts.parquet"), ledger, server.base_url).requests == 0


@pytest.mark.parametrize("detail", ["low", "high"])
def test_a_folder_of_posts_that_was_moved_asks_nothing_again_and_sends_the_same_from_anywhere(
    tmp_path: Path, ledger: Ledger, detail: str
) -> None:
    posts = make_posts(tmp_path, 2)
    files = fsspec.filesystem("memory")
    for name in [name for names in posts["images"] for name in names]:
        files.pipe_file(f"/moved-{detail}/{name}", (tmp_path / name).read_bytes())
    moved = posts.assign(root=f"memory://moved-{detail}")
    with Server(lambda number, body: reply(completion())) as server:
        run(posts, ledger, server.base_url, detail=detail)
        assert run(moved, ledger, server.base_url, detail=detail).requests == 0
        with Ledger(f"sqlite:///{tmp_path / 'other.db'}") as other:
            run(moved, other, server.base_url, detail=detail, price=load_prices()["gpt-4o"])
    first, again = (sorted(map(json.dumps, server.requests[i : i + 2])) for i in (0, 2))
    assert first == again


def test_a_simulated_and_a_real_annotator_share_no_answer(posts: pd.DataFrame, ledger: Ledger) -> None:
    with Server(lambda number, body: reply(completion())) as server:
        for annotator in ("simulated", "openai"):
            result = run(posts, ledger, server.base_url, annotator=annotator)
            assert set(result.labels["label_source"]) == {f"{annotator}:gpt-4o"}
    assert len(server.requests) == 2


# --- asked singly, and with structured output


def test_questions_asked_singly_are_one_request_each_and_a_new_wording_asks_that_question_only(
    tmp_path: Path, ledger: Ledger
) -> None:
    posts, task = make_posts(tmp_path, 3), load_task("ucc")
    reworded = task.questions[1].model_copy(update={"annotate": "Count the selfies."})
    changed = task.model_copy(update={"questions": (task.questions[0], reworded, *task.questions[2:])})
    with Server(lambda number, body: reply(completion("1"))) as server:
        result = run(posts, ledger, server.base_url, ask="singly")
        assert (result.requests, result.asked, result.total) == (15, 15, 15)
        assert result.labels[list(ACCURACY)].notna().all(axis=None)
        again = run(posts, ledger, server.base_url, changed, ask="singly")
        assert (again.requests, again.reused) == (3, 12)
        assert all("Count the selfies." in str(body) for body in server.requests[15:])
        # the title is quoted by one question, the text by another
        assert run(posts.assign(title="another"), ledger, server.base_url, task, ask="singly").requests == 3
        assert run(posts, ledger, server.base_url, task).requests > 0  # together is another prompt


def test_of_questions_asked_singly_each_is_missing_for_itself(posts: pd.DataFrame, ledger: Ledger) -> None:
    def behave(number: int, body: Any) -> Answer:
        return reply(completion(None, refusal="no") if "UGC" in str(body) else completion("1"))

    with Server(behave) as server:
        result = run(posts, ledger, server.base_url, ask="singly")
    row = result.labels.iloc[0]
    assert row["missing_reason"] == "ugc: refusal"
    assert [bool(pd.isna(row[id_])) for id_ in ACCURACY] == [False, True, False, False, False]
    assert result.reasons.to_dict("records") == [{"question": "ugc", "reason": "refusal", "requests": 1}]


def test_structured_output_is_asked_for_and_read_by_its_keys(posts: pd.DataFrame, ledger: Ledger) -> None:
    answer = '{"theme_relevant": 1, "watermark": 0, "ugc": 1, "title_relevant": 0, "text_relevant": 2}'
    with Server(lambda number, body: reply(completion(answer))) as server:
        row = run(posts, ledger, server.base_url, format="json_schema").labels.iloc[0]
        assert [row[id_] for id_ in load_task("ucc").question_ids] == [0, 1, 0, 1, 0]
        assert server.requests[0]["response_format"]["json_schema"]["strict"] is True
        assert run(posts, ledger, server.base_url).requests == 1  # the plain numbers are another prompt


# --- several processes on one ledger


def test_of_processes_that_work_on_the_same_posts_each_key_is_asked_by_one(tmp_path: Path) -> None:
    posts = make_posts(tmp_path, 200)
    posts.to_parquet(tmp_path / "posts.parquet")

    def behave(number: int, body: Any) -> Answer:
        time.sleep(0.02)
        return reply(completion())

    with Server(behave) as server:
        processes = [annotating(tmp_path, server.base_url) for _ in range(2)]
        ends = [process.communicate(timeout=60)[0].strip().splitlines()[-1] for process in processes]
    assert [end.split()[2:] for end in ends] == [["answered", "200"]] * 2
    assert sum(int(end.split()[1]) for end in ends) == 200
    assert min(int(end.split()[1]) for end in ends) > 0  # they shared the work
    titles = [str(body["messages"][0]["content"][0]["text"]) for body in server.requests]
    assert len(titles) == len(set(titles)) == 200


def test_killed_five_times_the_ledger_ends_as_that_of_an_undisturbed_run(tmp_path: Path) -> None:
    posts = make_posts(tmp_path, 300)
    posts.to_parquet(tmp_path / "posts.parquet")
    rng = np.random.default_rng(0)

    def behave(number: int, body: Any) -> Answer:
        time.sleep(0.01)
        return reply(completion())

    with Server(behave) as server:
        kills = 0
        while kills < 5:
            with annotating(tmp_path, server.base_url) as process:
                assert process.stdout is not None
                wanted = int(rng.integers(3, 20))
                for line in process.stdout:
                    if line.split()[0].isdigit() and int(line.split()[0]) >= wanted:
                        process.kill()
                        kills += 1
                        break
        with annotating(tmp_path, server.base_url) as process:
            assert process.communicate(timeout=60)[0].split()[-1] == "300"
        asked = len(server.requests)
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        rows = database.execute("SELECT key, attempt, counts, missing FROM annotation_answers").fetchall()
        assert database.execute("SELECT COUNT(*) FROM annotation_leases").fetchone() == (0,)
    keys = {request.key for request in Requests(posts, load_task("ucc"), settings_of()).distinct()}
    assert sorted(rows) == sorted((key, 1, "[0, 1, 2, 1, 2]", None) for key in keys)
    assert 300 <= asked <= 300 + 5 * 4  # four in flight at each kill


# --- money


def test_the_cap_is_never_passed_and_the_next_run_goes_on(tmp_path: Path, ledger: Ledger) -> None:
    posts, price = make_posts(tmp_path, 40), load_prices()["gpt-4o"]
    most = Requests(posts, load_task("ucc"), settings_of(), price).most
    requests = Requests(posts, load_task("ucc"), settings_of(), price).distinct()
    cost = price.dollars(100, 10)
    cap = 10 * cost + max(map(most, requests))

    def behave(number: int, body: Any) -> Answer:
        time.sleep(0.01)
        return reply(completion())

    with Server(behave) as server:
        with pytest.raises(CapReachedError, match=r"annotate.max_cost .* leaves no room") as caught:
            run(posts, ledger, server.base_url, price=price, max_cost=cap)
        assert "start the same command again" in str(caught.value)
        first = ledger.spent()
        assert cap - max(map(most, requests)) < first <= cap
        assert first == pytest.approx(cost * len(server.requests))
        with pytest.raises(CapReachedError):
            run(posts, ledger, server.base_url, price=price, max_cost=cap)
        assert first < ledger.spent() <= 2 * cap
        result = run(posts, ledger, server.base_url, price=price)
    assert (result.missing, len(server.requests)) == (0, 40)
    assert ledger.spent() == pytest.approx(40 * cost)


def test_what_may_have_been_charged_counts_with_the_most_that_it_can_have_cost(
    posts: pd.DataFrame, ledger: Ledger
) -> None:
    price = load_prices()["gpt-4o"]
    requests = Requests(posts, load_task("ucc"), settings_of(), price)
    most = requests.most(requests.distinct()[0])
    with Server(lambda number, body: reply(b"<html>")) as server:
        assert run(posts, ledger, server.base_url, price=price).cost == pytest.approx(most)
    with Server(lambda number, body: reply(error(), 400)) as server:
        assert run(posts.assign(title="b"), ledger, server.base_url, price=price).cost == 0.0
    with Server(lambda number, body: reply(completion())) as server:
        assert run(posts.assign(title="c"), ledger, server.base_url).cost is None


@pytest.mark.usefixtures("quick")
def test_what_the_server_charged_is_what_is_booked(tmp_path: Path, ledger: Ledger) -> None:
    """Errors of every status with and without a usage; the server adds up what it charges."""
    price, charged = load_prices()["gpt-4o"], [0.0]
    rest = {"usage": {"prompt_tokens": 70, "completion_tokens": 0}}
    storm = [
        reply(completion()),
        reply(error("flagged by moderation", code="content_filter"), 400),
        reply({"error": {"code": 502, "message": "Provider returned error"}}),
        reply({"error": {"code": 502, "message": "Provider returned error"}} | rest),
        reply(error("slow down"), 429),
        reply(error("image too large"), 400),
        reply(completion(None, refusal="no")),
        reply(error(), 500),
    ]

    def behave(number: int, body: Any) -> Answer:
        answer = storm[number % len(storm)]
        usage = json.loads(answer[2]).get("usage")
        charged[0] += price.dollars(usage["prompt_tokens"], usage["completion_tokens"]) if usage else 0.0
        return answer

    with Server(behave) as server:
        result = run(make_posts(tmp_path, 60), ledger, server.base_url, price=price, retries=1)
    assert result.cost == pytest.approx(charged[0])
    assert ledger.spent() == pytest.approx(charged[0])


def test_a_usage_that_no_reply_can_have_is_none(posts: pd.DataFrame, ledger: Ledger) -> None:
    price = load_prices()["gpt-4o"]
    requests = Requests(posts, load_task("ucc"), settings_of(), price)
    absurd = completion() | {"usage": {"prompt_tokens": 10**30, "completion_tokens": 10}}
    with Server(lambda number, body: reply(absurd)) as server:
        result = run(posts, ledger, server.base_url, price=price)
        assert run(posts, ledger, server.base_url, price=price).requests == 0
    assert (result.missing, result.cost) == (0, pytest.approx(requests.most(requests.distinct()[0])))


@pytest.mark.usefixtures("quick")
def test_a_request_that_was_lost_on_the_way_is_reserved_and_counted_too(posts: pd.DataFrame, ledger: Ledger) -> None:
    price = load_prices()["gpt-4o"]
    requests = Requests(posts, load_task("ucc"), settings_of(), price)
    most = requests.most(requests.distinct()[0])
    cut = reply(completion(), content_length="100000")
    with Server(lambda number, body: cut if number == 1 else reply(completion())) as server:
        result = run(posts, ledger, server.base_url, price=price, max_cost=10.0)
        assert result.cost == pytest.approx(most + price.dollars(100, 10))
        # where the cap has no room for a second one, the lost one is not repeated
        server.requests.clear()
        result = run(
            posts.assign(title="title b"), ledger, server.base_url, price=price, max_cost=1.5 * most, retries=1
        )
        assert result.labels["missing_reason"].tolist() == ["connection failed"]
        assert (result.requests, result.cost) == (1, pytest.approx(most))


def test_what_costs_more_than_the_rule_says_raises_the_bound_once_and_not_once_a_request_under_way(
    tmp_path: Path, ledger: Ledger
) -> None:
    posts, price = make_posts(tmp_path, 40), load_prices()["gpt-4o"]
    requests = Requests(posts, load_task("ucc"), settings_of(), price)
    dear = completion() | {"usage": {"prompt_tokens": 20_000, "completion_tokens": 10}}  # images of an unknown rule
    with Server(lambda number, body: reply(dear)) as server:
        # raised once, the bound leaves room for twice as many as there are
        cap = 80 * price.dollars(20_000, 10)
        result = run(posts, ledger, server.base_url, price=price, concurrency=16, max_cost=cap)
    assert result.missing == 0
    request = requests.distinct()[0]
    most = requests.most(request)
    for _ in range(3):  # all sent before the first came back
        requests.learn(request, most, 10 * most)
    assert requests.most(request) == pytest.approx(10 * most)


def test_a_cap_without_a_price_is_refused_before_anything_is_sent(posts: pd.DataFrame, ledger: Ledger) -> None:
    with pytest.raises(AnnotationError, match=r"'gpt-4o' has no price; add it to configs/prices.yaml"):
        run(posts, ledger, "http://127.0.0.1:9/v1", max_cost=1.0)


# --- limits of the endpoint


def test_no_request_is_sent_beyond_the_limit_that_the_headers_tell(tmp_path: Path, ledger: Ledger) -> None:
    """An endpoint that lets 5 requests in at once and 20 per second, and refuses what goes beyond."""
    lock, level, at = threading.Lock(), 5.0, time.monotonic()
    refused = []

    def behave(number: int, body: Any) -> Answer:
        nonlocal level, at
        with lock:
            now = time.monotonic()
            level, at = min(5.0, level + 20 * (now - at)), now
            if level < 1:
                refused.append(number)
                return reply(error(), 429, retry_after="0.1")
            level -= 1
            headers = {
                "x_ratelimit_limit_requests": "5",
                "x_ratelimit_remaining_requests": str(int(level)),
                "x_ratelimit_reset_requests": f"{round(1000 * (5 - level) / 20)}ms",
            }
        return reply(completion(), **headers)

    with Server(behave) as server:
        result = run(make_posts(tmp_path, 40), ledger, server.base_url, concurrency=16)
    assert result.missing == 0
    # before the first reply nothing is known: 16 go out, 5 are let in. Without learning, 41 to 46 were refused; a busy
    # machine, whose clocks run past each other, refuses up to 23.
    assert len(refused) <= 32


# --- missing, with its reason

FLAGGED = Missing.CONTENT_FILTER
NO_ANSWERS: dict[str, tuple[Answer, Missing]] = {
    "HTML with 200": (reply(b"<html>Sign in</html>", content_type="text/html"), Missing.NOT_JSON),
    "cut JSON": (reply(json.dumps(completion()).encode()[:40]), Missing.NOT_JSON),
    "not UTF-8": (reply(b"\xff\xfe\x00"), Missing.NOT_JSON),
    "empty body": (reply(b""), Missing.NOT_JSON),
    "empty choices": (reply({"choices": []}), Missing.EMPTY),
    "an error that was charged": (reply(error("cut off") | {"usage": {"prompt_tokens": 9}}), Missing.ERROR),
    "input that was flagged": (reply(error("Your input was flagged", metadata={"reasons": ["x"]}), 403), FLAGGED),
    "input that was flagged, with 200": (reply(error("Your input was flagged", code=403)), FLAGGED),
    "choices of another form": (reply({"choices": ["x"]}), Missing.EMPTY),
    "a list": (reply([1, 2]), Missing.EMPTY),
    "a refusal": (reply(completion(None, refusal="I can't.")), Missing.REFUSAL),
    "the content filter": (reply(completion("", finish_reason="content_filter")), Missing.CONTENT_FILTER),
    "the content filter by status": (reply(error(code="content_filter"), 400), Missing.CONTENT_FILTER),
    "length": (reply(completion("1,1,1", finish_reason="length")), Missing.CUT),
    "prose": (reply(completion(f"Here you are: {COUNTS}")), Missing.MALFORMED),
    "no content": (reply(completion(None)), Missing.MALFORMED),
    "four numbers": (reply(completion("0,1,2,1")), Missing.WRONG_NUMBER),
    "more images than there are": (reply(completion("0,1,3,1,2")), Missing.OUT_OF_RANGE),
    "a rejected request": (reply(error("image too large"), 400), Missing.REJECTED),
    "a broken usage": (reply(completion("x") | {"usage": {"prompt_tokens": "many"}}), Missing.MALFORMED),
}


@pytest.mark.parametrize("case", NO_ANSWERS)
def test_a_reply_that_is_no_answer_is_missing_with_its_reason(case: str, posts: pd.DataFrame, ledger: Ledger) -> None:
    answer, reason = NO_ANSWERS[case]
    with Server(lambda number, body: answer) as server:
        result = run(posts, ledger, server.base_url)
    assert result.labels["missing_reason"].tolist() == [reason.value]
    assert result.labels[list(ACCURACY)].isna().all(axis=None)
    assert (result.missing, len(server.requests)) == (1, 1)


def test_a_missing_answer_is_asked_again_as_often_as_allowed_over_all_runs(posts: pd.DataFrame, ledger: Ledger) -> None:
    with Server(lambda number, body: reply(completion("prose"))) as server:
        assert run(posts, ledger, server.base_url, retries=1).requests == 2
        assert run(posts, ledger, server.base_url, retries=1).requests == 0
        assert run(posts, ledger, server.base_url, retries=3).requests == 2
    assert len(server.requests) == 4


def test_a_retry_that_is_answered_ends_the_asking(posts: pd.DataFrame, ledger: Ledger) -> None:
    with Server(lambda number, body: reply(completion(COUNTS if number == 2 else "prose"))) as server:
        result = run(posts, ledger, server.base_url, retries=5)
    assert (result.requests, result.missing) == (2, 0)
    assert (result.prompt_tokens, result.completion_tokens) == (200, 20)  # both were paid


def test_too_many_missing_answers_stop_the_run_after_all_is_recorded(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 10)
    with Server(lambda number, body: reply(completion("prose" if number <= 3 else COUNTS))) as server:
        with pytest.raises(AnnotationError, match=r"3 of 10 posts have no answer \(malformed answer: 3\)"):
            run(posts, ledger, server.base_url, max_missing_share=0.2)
        assert run(posts, ledger, server.base_url, max_missing_share=0.3).requests == 0


# --- disturbances that pass


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "disturbed",
    [
        *(reply(error(), status) for status in (408, 409, 429, 500, 502, 503)),
        *(reply(error(code=code)) for code in (429, "502", "rate_limit_exceeded", None)),  # of HTTP 200
        *(reply(body) for body in ({"detail": "Too many requests"}, [{"error": {"code": 503}}])),
        reply({"choices": [{"error": {"code": 502}, "message": {"content": "1,"}, "finish_reason": "error"}]}),
        reply(completion(), content_length="100000"),  # cut by a closed connection
        *(reply(error(), 429, retry_after=senseless) for senseless in ("soon", "-5", "nan", "")),
    ],
)
def test_a_passing_disturbance_is_waited_out_within_one_attempt(
    disturbed: Answer, posts: pd.DataFrame, ledger: Ledger
) -> None:
    with Server(lambda number, body: disturbed if number < 3 else reply(completion())) as server:
        result = run(posts, ledger, server.base_url)
    assert (result.missing, result.requests) == (0, 3)


@pytest.mark.usefixtures("quick")
def test_retry_after_is_honoured(posts: pd.DataFrame, ledger: Ledger) -> None:
    started = time.monotonic()
    with Server(
        lambda number, body: reply(error(), 429, retry_after="1") if number == 1 else reply(completion())
    ) as server:
        result = run(posts, ledger, server.base_url)
    assert (result.missing, result.requests) == (0, 2)
    assert 1 <= time.monotonic() - started < 3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("retry_after", ["120", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_retry_after_ends_with_the_deadline_and_uses_up_no_retry(
    retry_after: str, posts: pd.DataFrame, ledger: Ledger
) -> None:
    started = time.monotonic()
    with Server(
        lambda number, body: reply(error(), 429, retry_after=retry_after) if number == 1 else reply(completion())
    ) as server:
        result = run(posts, ledger, server.base_url, timeout=0.5)
        assert result.labels["missing_reason"].tolist() == ["rate limited"]
        assert time.monotonic() - started < 3
        assert run(posts, ledger, server.base_url).missing == 0


def test_a_slow_drip_ends_at_the_timeout(posts: pd.DataFrame, ledger: Ledger) -> None:
    started = time.monotonic()
    with Server(lambda number, body: reply(completion()), drip=0.05) as server:
        result = run(posts, ledger, server.base_url, timeout=0.5)
    assert result.labels["missing_reason"].tolist() == ["timeout"]
    assert 0.5 <= time.monotonic() - started < 4


# --- what stops the run


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply(error("Incorrect API key provided"), 401), r"Incorrect API key.*OPENAI_API_KEY"),
        (reply(error("region"), 403), r"region.*OPENAI_API_KEY"),
        (reply(error("You exceeded your quota", code="insufficient_quota"), 429), r"exceeded your quota.*credit"),
        (reply(error("You exceeded your quota", type="insufficient_quota"), 429), r"exceeded your quota.*credit"),
        (reply({"detail": {"code": "insufficient_quota"}}, 429), r"insufficient_quota.*credit"),
        (reply(error("You exceeded your quota", code="insufficient_quota")), r"HTTP 200: You exceeded.*credit"),
        (reply(error("Invalid key", code="401")), r"Invalid key.*OPENAI_API_KEY"),
        (reply(b"<html>\n<p>Forbidden\n</html>", 403), r"HTTP 403: Forbidden; check OPENAI_API_KEY"),
        (reply(error("The model gpt-4o does not exist"), 404), r"does not exist.*annotate.model 'gpt-4o'"),
    ],
)
def test_what_no_other_post_would_survive_stops_at_once_and_keeps_what_was_answered(
    answer: Answer, message: str, tmp_path: Path, ledger: Ledger
) -> None:
    posts = make_posts(tmp_path, 60)
    started = time.monotonic()
    with Server(lambda number, body: reply(completion()) if number <= 20 else answer) as server:
        with pytest.raises(AnnotationError, match=message) as caught:
            run(posts, ledger, server.base_url)
        assert server.base_url in str(caught.value)
        asked = len(server.requests)
    assert asked <= 20 + 4  # the four workers
    assert time.monotonic() - started < 5
    with Server(lambda number, body: reply(completion())) as server:
        assert run(posts, ledger, server.base_url).requests == 40


def test_what_is_in_flight_when_the_run_stops_is_still_recorded(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 2)

    def behave(number: int, body: Any) -> Answer:
        if "title 0" in str(body):
            return reply(error(), 401)
        time.sleep(0.5)
        return reply(completion())

    with Server(behave) as server:
        with pytest.raises(AnnotationError):
            run(posts, ledger, server.base_url)
        assert run(posts.iloc[1:], ledger, server.base_url).requests == 0


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http://127.0.0.1:{port}/v1", "127.0.0.1:{port}/v1"])
def test_an_endpoint_that_is_down_stops_the_run_quickly(scheme: str, tmp_path: Path, ledger: Ledger) -> None:
    url = scheme.format(port=_closed_port())
    started = time.monotonic()
    with pytest.raises(AnnotationError, match=r"Connection error.*OPENAI_BASE_URL") as caught:
        run(make_posts(tmp_path, 50), ledger, url, timeout=60)
    assert url in str(caught.value)
    assert time.monotonic() - started < 8


@pytest.mark.usefixtures("quick")
def test_posts_that_are_flagged_are_their_own_and_the_run_goes_on(tmp_path: Path, ledger: Ledger) -> None:
    flagged = reply(error("Your input was flagged", code=403, metadata={"reasons": ["sexual"]}), 403)

    def behave(number: int, body: Any) -> Answer:
        return reply(completion()) if "title 7" in str(body) else flagged

    with Server(behave) as server:
        result = run(make_posts(tmp_path, 20), ledger, server.base_url, price=load_prices()["gpt-4o"])
        assert len(server.requests) == 20
    assert result.labels["missing_reason"].value_counts().to_dict() == {"content filter": 19}
    assert result.cost == pytest.approx(load_prices()["gpt-4o"].dollars(100, 10))


@pytest.mark.usefixtures("quick")
def test_an_error_in_a_reply_of_200_is_waited_for_and_neither_booked_nor_a_used_up_retry(
    tmp_path: Path, ledger: Ledger
) -> None:
    posts, price = make_posts(tmp_path, 4), load_prices()["gpt-4o"]
    with Server(lambda number, body: reply(error("slow", code=429), retry_after="60")) as server:
        result = run(posts, ledger, server.base_url, price=price, timeout=1.0)
        assert result.labels["missing_reason"].tolist() == ["rate limited"] * 4
        assert len(server.requests) == 4  # each waited as it was told, until its time was over
    assert ledger.spent() == 0
    with Server(lambda number, body: reply(completion())) as server:
        assert run(posts, ledger, server.base_url, price=price).missing == 0
    assert ledger.spent() == pytest.approx(4 * price.dollars(100, 10))


def _picky(number: int, body: Any) -> Answer:
    """A model that takes neither max_tokens nor a temperature."""
    time.sleep(0.01)
    if "max_tokens" in body:
        message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return reply(error(message, param="max_tokens", code="unsupported_parameter"), 400)
    if body.get("temperature", 1) != 1:
        message = "Unsupported value: 'temperature' does not support 0 with this model."
        return reply(error(message, param="temperature", code="unsupported_value"), 400)
    return reply(completion())


def test_fields_that_the_model_does_not_take_are_left_out_once_for_all(
    tmp_path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[Progress] = []
    with Server(_picky) as server:
        settings = settings_of(concurrency=8)
        result = annotate_posts(
            make_posts(tmp_path, 40), load_task("ucc"), settings, ledger, base_url=server.base_url, api_key="k",
            on_progress=done.append,
        )  # fmt: skip
    assert (result.missing, done[-1].done) == (0, 40)
    assert 40 + 2 <= result.requests == len(server.requests) <= 40 + 2 * 8  # at most each worker's first one
    assert {key: server.requests[-1].get(key) for key in ("max_tokens", "max_completion_tokens", "temperature")} == {
        "max_tokens": None, "max_completion_tokens": 64, "temperature": None,
    }  # fmt: skip
    assert [record.args[1:3] for record in caplog.records if record.args and "does not take" in record.msg] == [
        ("max_tokens", "max_completion_tokens is sent in its place"),
        ("temperature", "it is no longer sent"),
    ]
    with sqlite3.connect(tmp_path / "ledger.db") as database:  # what was rejected left no attempt
        assert database.execute("SELECT COUNT(*), MAX(attempt) FROM annotation_answers").fetchone() == (40, 1)


def test_a_field_of_the_settings_that_the_model_does_not_take_stops_the_run_and_is_named(
    tmp_path: Path, ledger: Ledger
) -> None:
    posts = make_posts(tmp_path, 20)
    with Server(_picky) as server:
        with pytest.raises(
            AnnotationError, match=r"HTTP 400: Unsupported value.*'temperature' in annotate.request_fie"
        ):
            run(posts, ledger, server.base_url, request_fields={"temperature": 0.0})
        fields = {"max_completion_tokens": 500, "temperature": None}
        server.requests.clear()
        assert run(posts, ledger, server.base_url, request_fields=fields).requests == len(server.requests) == 20
    assert server.requests[0]["max_completion_tokens"] == 500


@pytest.mark.usefixtures("quick")
def test_settings_that_the_endpoint_rejects_stop_the_run_after_a_few_posts(tmp_path: Path, ledger: Ledger) -> None:
    with Server(lambda number, body: reply(error("detail must be auto"), 400)) as server:
        with pytest.raises(AnnotationError, match=r"HTTP 400: detail must be auto.*Done before: 0 of 60"):
            run(make_posts(tmp_path, 60), ledger, server.base_url)
        assert len(server.requests) <= 8 + 4


def test_no_key_is_one_clear_error(posts: pd.DataFrame, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for key, message in ((None, "no API key"), ("k\n", "cannot"), ("schlüssel", "cannot")):
        with pytest.raises(AnnotationError, match=message):
            annotate_posts(posts, load_task("ucc"), settings_of(), ledger, base_url="http://127.0.0.1:9", api_key=key)


@pytest.mark.parametrize("detail", ["low", "high"])  # for the cost of a high one its size is read first
def test_a_changed_or_lost_image_stops_the_run_before_it_is_sent_and_is_named(
    tmp_path: Path, ledger: Ledger, detail: str
) -> None:
    posts = make_posts(tmp_path, 1)
    name = posts["images"][0][1]
    path = tmp_path / name
    with Server(lambda number, body: reply(completion())) as server:
        path.write_bytes(path.read_bytes() + b"x")
        with pytest.raises(AnnotationError, match=rf"post train0: image {name} under {tmp_path}: was changed"):
            run(posts, ledger, server.base_url, detail=detail)
        path.unlink()
        with pytest.raises(AnnotationError, match=rf"post train0: image {name} under {tmp_path}: no such file"):
            run(posts, ledger, server.base_url, detail=detail)
    assert server.requests == []


# --- a storm, a kill, and the simulated annotator


@pytest.mark.usefixtures("quick")
def test_in_a_storm_of_failures_every_post_ends_answered_or_missing_and_is_paid_as_allowed(
    tmp_path: Path, ledger: Ledger
) -> None:
    posts = make_posts(tmp_path, 300)
    storm = [
        *(answer for answer, _ in NO_ANSWERS.values()),
        reply(error(), 500),
        reply(error(), 429),
        reply(error(), 429, retry_after="0.05"),
        reply(completion(), content_length="100000"),  # cut by a closed connection
        *[reply(completion())] * 20,
    ]
    quota = reply(error("You exceeded your quota", code="insufficient_quota"), 429)
    served: Counter[str] = Counter()

    def behave(number: int, body: Any) -> Answer:
        if number in (120, 260):
            return quota
        if number % 97 == 0:
            time.sleep(2.2)  # longer than the deadline
        answer = storm[number * 7 % len(storm)]
        if answer[0] == 200 and "content-length" not in answer[1]:
            served[body["messages"][0]["content"][0]["text"]] += 1
        return answer

    done: list[Progress] = []
    quotas = 0
    with Server(behave) as server:
        while True:
            try:
                result = annotate_posts(
                    posts,
                    load_task("ucc"),
                    settings_of(retries=2, concurrency=16, timeout=2),
                    ledger,
                    base_url=server.base_url,
                    api_key="k",
                    on_progress=done.append,
                )
                break
            except AnnotationError as stopped:
                if "exceeded your quota" not in str(stopped):
                    raise
                quotas += 1
    labels = result.labels
    assert quotas == 2
    assert labels["post_id"].tolist() == posts["post_id"].tolist()
    assert (labels["missing_reason"].isna() == labels[list(ACCURACY)].notna().all(axis="columns")).all()
    unserved = labels["missing_reason"].isin([reason.value for reason in UNPAID]).sum()
    assert done[-1].done == done[-1].total - unserved
    assert max(served.values()) <= 3  # once, and two retries
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        unpaid = "('request rejected', 'rate limited', 'server error', 'connection failed')"
        attempts = database.execute(
            f"SELECT COUNT(*), SUM(counts IS NOT NULL), SUM(missing IS NULL OR missing NOT IN {unpaid}) "
            "FROM annotation_answers GROUP BY key"
        ).fetchall()
        assert database.execute("SELECT COUNT(*) FROM annotation_leases").fetchone() == (0,)
    assert len(attempts) == 300
    assert all(answered <= 1 and paid <= 3 for _, answered, paid in attempts)


@contextmanager
def simulated(posts: pd.DataFrame) -> Iterator[SimulatedAnnotator]:
    truth = pd.DataFrame(
        {"post_id": posts["post_id"], "images_sha256": posts["image_sha256"], "n_images": N_IMAGES}
        | dict.fromkeys(ACCURACY, 1)
    )
    with SimulatedAnnotator(truth, load_task("ucc")) as annotator:
        yield annotator


def test_the_simulated_annotator_is_asked_through_the_same_client(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 30)
    with simulated(posts) as annotator:
        result = run(posts, ledger, annotator.base_url)
        assert annotator.requests == result.requests == 30
        with pytest.raises(AnnotationError, match="knows only the embedded sample"):
            run(make_posts(tmp_path, 31), ledger, annotator.base_url)
    # count 1 of 2: watermark yes, ugc yes; wrong ones are of the other class
    assert result.labels["ugc"].dropna().isin([0, 1]).all()
    assert result.missing <= 3
