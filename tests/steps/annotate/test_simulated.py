"""The simulated annotator errs as the paper says, knows the sample only, and ends with its parent."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import openai
import pandas as pd
import pytest

from model.errors import AnnotationError
from model.task import Task, load_task
from steps.annotate.simulated import (
    ACCURACY,
    MISSING_SHARE,
    PROSE,
    REFUSAL,
    SimulatedAnnotator,
    album_key,
    simulated_count,
    simulated_message,
)

REPOSITORY = Path(__file__).resolve().parents[3]
POSTS = 6000


def truth_of(albums: list[list[bytes]], count: int) -> pd.DataFrame:
    rows = [
        {
            "post_id": f"p{number}",
            "images_sha256": [hashlib.sha256(image).hexdigest() for image in album],
            "n_images": len(album),
            **dict.fromkeys(ACCURACY, count),
        }
        for number, album in enumerate(albums)
    ]
    return pd.DataFrame(rows)


def within(found: int, n: int, share: float) -> bool:
    """`found` of `n` is within four standard deviations of a binomial with `share`: 1 in 16,000 by chance."""
    return abs(found - n * share) <= 4 * sqrt(n * share * (1 - share))


@pytest.mark.parametrize(
    ("id_", "accuracy"),
    [
        ("watermark", 0.7910),
        ("ugc", 0.6695),
        ("title_relevant", 0.7429),
        ("text_relevant", 0.5113),
        ("theme_relevant", 0.7768),
    ],
)
def test_each_question_is_as_accurate_as_the_paper_measured(id_: str, accuracy: float) -> None:
    question = next(q for q in load_task("ucc").questions if q.id == id_)
    right = {0: 0, 1: 0}
    asked = {0: 0, 1: 0}
    for number in range(POSTS):
        n_images = number % 8 + 1
        true_count = number % (n_images + 1)
        answer = simulated_count(question, f"post {number}", true_count, n_images)
        true_class = question.class_of(true_count, n_images)
        asked[true_class] += 1
        right[true_class] += question.class_of(answer, n_images) == true_class
    assert within(sum(right.values()), POSTS, accuracy)
    assert within(right[0], asked[0], accuracy)
    assert within(right[1], asked[1], accuracy)


def test_a_right_answer_is_the_true_count_and_wrong_ones_are_uniform_over_the_other_class() -> None:
    question = load_task("ucc").questions[1]  # share >= 0.5: of 4 images 0, 1 | 2, 3, 4
    answers = pd.Series([simulated_count(question, f"post {n}", 3, 4) for n in range(POSTS)]).value_counts()
    assert set(answers.index) == {0, 1, 3}
    assert within(int(answers[0]), int(answers[0] + answers[1]), 0.5)


def test_errors_of_two_questions_are_independent() -> None:
    first, second = load_task("ucc").questions[:2]
    both = sum(
        simulated_count(first, f"post {n}", 0, 4) > 0 and simulated_count(second, f"post {n}", 0, 4) >= 2
        for n in range(POSTS)
    )
    assert within(both, POSTS, (1 - 0.7910) * (1 - 0.6695))


def test_where_no_answer_gives_another_class_the_true_count_is_given() -> None:
    question = load_task("ucc").questions[0].model_copy(update={"rule": "count >= 3"})
    assert {simulated_count(question, f"post {n}", 1, 2) for n in range(200)} == {1}


def test_almost_no_post_is_missing_half_of_them_by_refusal_and_none_is_answered_in_part() -> None:
    task = load_task("ucc")
    messages = [simulated_message(task, f"post {n}", [0] * 5, 4) for n in range(4 * POSTS)]
    refused = [m for m in messages if m["refusal"] == REFUSAL and m["content"] is None]
    malformed = [m for m in messages if m["content"] == PROSE]
    assert within(len(refused) + len(malformed), len(messages), MISSING_SHARE)
    assert within(len(refused), len(refused) + len(malformed), 0.5)
    answered = [m["content"] for m in messages if m["content"] not in (None, PROSE)]
    assert len(answered) + len(refused) + len(malformed) == len(messages)
    assert all(len(content.split(",")) == 5 for content in answered)


def test_a_post_is_answered_the_same_way_every_time_and_by_the_order_of_its_images() -> None:
    task = load_task("ucc")
    assert simulated_message(task, "post", [1] * 5, 4) == simulated_message(task, "post", [1] * 5, 4)
    assert album_key(["a", "b"]) != album_key(["b", "a"])
    assert album_key(["a", "b"]) != album_key(["ab"])


def test_a_task_that_the_truth_does_not_answer_is_refused_with_what_to_do() -> None:
    task = load_task("ucc")
    truth = truth_of([[b"x"]], 1)
    other = task.model_copy(update={"questions": (task.questions[0].model_copy(update={"id": "nudity"}),)})
    with pytest.raises(AnnotationError, match=r"nudity.*annotator: human.*annotator: openai"):
        SimulatedAnnotator(truth, other)
    with pytest.raises(AnnotationError, match="ugc"):
        SimulatedAnnotator(truth.drop(columns="ugc"), task)


def test_two_truths_for_the_same_images_are_refused() -> None:
    truth = pd.concat([truth_of([[b"x"]], 0), truth_of([[b"x"]], 1)])
    with pytest.raises(AnnotationError, match="same images"):
        SimulatedAnnotator(truth, load_task("ucc"))


ALBUMS = [[bytes([number]), b"second"] for number in range(20)]


@pytest.fixture(scope="module")
def simulated() -> Iterator[SimulatedAnnotator]:
    with SimulatedAnnotator(truth_of(ALBUMS, 1), load_task("ucc")) as running:
        yield running


def ask(annotator: SimulatedAnnotator, album: list[bytes]) -> Any:
    """Through the typed client, so that the reply is shown to have the protocol's form."""
    images: list[Any] = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"}}
        for image in album
    ]
    with openai.OpenAI(base_url=annotator.base_url, api_key=annotator.api_key, max_retries=0) as client:
        return client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": [{"type": "text", "text": "How many?"}, *images]}]
        )


def test_it_answers_over_http_what_was_drawn_and_counts_its_requests(simulated: SimulatedAnnotator) -> None:
    task: Task = load_task("ucc")
    before = simulated.requests
    for album in ALBUMS:
        reply = ask(simulated, album)
        post = album_key([hashlib.sha256(image).hexdigest() for image in album])
        assert reply.choices[0].message.content == simulated_message(task, post, [1] * 5, 2)["content"]
        assert reply.usage.prompt_tokens == 2 * 85 + len("How many?") // 4
        assert reply.model == "gpt-4o"
    assert simulated.requests == before + len(ALBUMS)


def test_images_outside_the_sample_are_refused_with_what_to_do(simulated: SimulatedAnnotator) -> None:
    with pytest.raises(openai.NotFoundError, match="simulated annotator knows only the embedded sample"):
        ask(simulated, [b"other"])


def test_a_request_that_is_no_chat_completion_is_a_bad_request(simulated: SimulatedAnnotator) -> None:
    with openai.OpenAI(base_url=simulated.base_url, api_key="x", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "plain text"}])
        with pytest.raises(openai.NotFoundError, match="serves POST /v1/chat/completions only"):
            client.models.list()


def test_the_number_of_requests_is_known_after_the_end_and_the_port_is_closed() -> None:
    with SimulatedAnnotator(truth_of(ALBUMS[:1], 1), load_task("ucc")) as annotator:
        ask(annotator, ALBUMS[0])
    assert annotator.requests == 1
    with pytest.raises(openai.APIConnectionError):
        ask(annotator, ALBUMS[0])


def test_the_server_ends_when_its_parent_is_killed() -> None:
    parent = (
        "import json, time\n"
        "import pandas as pd\n"
        "from model.task import load_task\n"
        "from steps.annotate.simulated import ACCURACY, SimulatedAnnotator\n"
        "row = {'post_id': 'p', 'images_sha256': ['00'], 'n_images': 1, **dict.fromkeys(ACCURACY, 1)}\n"
        "with SimulatedAnnotator(pd.DataFrame([row]), load_task('ucc')) as annotator:\n"
        "    print(json.dumps([annotator._process.pid, annotator.base_url]), flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, base_url = json.loads(process.stdout.readline())
        assert base_url.startswith("http://127.0.0.1:")
        os.kill(pid, 0)  # it runs
        process.send_signal(signal.SIGKILL)
    assert _ended(pid, seconds=10)


def _ended(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False
