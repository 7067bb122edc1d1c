"""The simulated annotator: a real HTTP server on loopback that errs as often as GPT-4o did in the paper.

It speaks `POST /v1/chat/completions` of the OpenAI protocol, so that the embedded default runs the
same client as a paid endpoint does, without a key or a network. It knows the posts of the embedded
sample only, by the content of their images or frames, and answers from the sample's hidden truth.

The answers are drawn before the server starts, each from a seed made of its post and question, so
a post is answered the same way every time. The server itself is a process of its own
(`python -m steps.annotate.simulated`), which uses a second core, imports neither pandas nor
the task, and ends with its parent however that ends.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.client
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import AnnotationError
from model.schema import IMAGE_SHA256, POST_ID, VIDEO_SHA256

if TYPE_CHECKING:  # the server process needs neither
    import pandas as pd

    from model.task import Question, Task

#: How often GPT-4o's class equalled people's, per question (paper 3.3.1).
ACCURACY = {
    "watermark": 0.7910,
    "ugc": 0.6695,
    "title_relevant": 0.7429,
    "text_relevant": 0.5113,
    "theme_relevant": 0.7768,
}
#: Share of posts that come back without usable numbers. The paper says "almost no missing values"
#: and gives no number (3.3.1): 0.5 % is our reading of it.
MISSING_SHARE = 0.005
#: The two forms of a missing answer, in equal parts: a refusal, and prose in place of numbers.
REFUSAL = "I'm sorry, I can't help with that."
PROSE = "The album shows several images, so I would say that most of them are related to its theme."

#: A request for this tells how many chat requests were served.
_COUNT_PATH = "/simulated/requests"
_CHAT_PATH = "/v1/chat/completions"
_START_SECONDS = 60.0
_PARENT_CHECK_SECONDS = 0.5
_REPOSITORY = Path(__file__).resolve().parents[2]


def album_key(image_sha256s: Sequence[str]) -> str:
    """The simulated annotator's name of a post: the hashes of its images, or of its clip's frames, in order."""
    return hashlib.sha256("\n".join(image_sha256s).encode()).hexdigest()


def _draws(*seed: str) -> tuple[float, int]:
    """A uniform number of [0, 1) and an independent large integer, the same for the same seed everywhere."""
    digest = hashlib.sha256("\n".join(seed).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48, int.from_bytes(digest[6:], "big")


def simulated_count(question: Question, post: str, true_count: int, n_images: int) -> int:
    """The annotator's answer to one question: with its error rate one that gives another class.

    A wrong answer is drawn uniformly from those that give another class by the question's rule.
    Where no answer does (`count >= 3` in an album of two) the true one is returned.

    Args:
        post: the post's `album_key`.
        true_count: what a perfect annotator would return.
    """
    chance, pick = _draws(post, question.id)
    if chance < ACCURACY[question.id]:
        return true_count
    answers = range(n_images + 1) if question.answer == "count" else range(len(question.classes))
    true_class = question.class_of(true_count, n_images)
    wrong = [answer for answer in answers if question.class_of(answer, n_images) != true_class]
    return wrong[pick % len(wrong)] if wrong else true_count


def simulated_message(
    task: Task, post: str, true_counts: Sequence[int], n_images: int, times: int = 1
) -> dict[str, Any]:
    """The assistant's `message` for one post.

    Args:
        post: the post's `album_key`.
        true_counts: one for each question of the task, in order.
        times: how often each image is shown: in a clip more than once.
    """
    chance, pick = _draws(post, "missing")
    if chance < MISSING_SHARE:
        refused = pick % 2 == 0
        return {"role": "assistant", "content": None if refused else PROSE, "refusal": REFUSAL if refused else None}
    counts = [
        simulated_count(question, post, count, n_images) * (times if question.answer == "count" else 1)
        for question, count in zip(task.questions, true_counts, strict=True)
    ]
    return {"role": "assistant", "content": ",".join(map(str, counts)), "refusal": None}


class SimulatedAnnotator:
    """Runs the simulated annotator while its `with` block runs.

    Args:
        truth: the sample's hidden truth: post_id, images_sha256 (list of hex), n_images, the true count of each
            question of the task, and video_sha256 where an album comes as a clip.
        task: the questions, in the order in which they are asked.
        posts: as ingest read them: what the frames of each clip are.
        texts: answers to requests without images, by their text.

    Raises:
        AnnotationError: the task asks what the sample has no truth for, or the server does not start.
    """

    #: What the client is to send as its key; the server does not look at it.
    api_key = "simulated"

    def __init__(
        self,
        truth: pd.DataFrame,
        task: Task,
        posts: pd.DataFrame | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        unknown = [id_ for id_ in task.question_ids if id_ not in ACCURACY or id_ not in truth.columns]
        if unknown:
            raise AnnotationError(
                f"task {task.name}: the simulated annotator cannot answer {', '.join(unknown)}; it knows only "
                f"{', '.join(ACCURACY)}, on the embedded sample. Set `annotator: human` to use the manifest's own "
                "process labels, or `annotator: openai` to ask a real annotator"
            )
        self._messages = _messages(truth, task, _frames(posts))
        for text, answer in (texts or {}).items():
            self._messages[album_key([text])] = {"role": "assistant", "content": answer, "refusal": None}
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._served = 0

    @property
    def base_url(self) -> str:
        """The endpoint's base URL, as the openai client takes it."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def requests(self) -> int:
        """The number of chat requests served until now."""
        if self._process is not None and self._process.poll() is None:
            self._served = self._ask_count(timeout=10)
        return self._served

    def __enter__(self) -> SimulatedAnnotator:
        # Bound here and handed over: the port is known at once, and requests wait until the server accepts.
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            self._port = listener.getsockname()[1]
            # A session of its own: Ctrl-C reaches the client alone, which then ends the server.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "steps.annotate.simulated", str(listener.fileno()), str(os.getpid())],
                cwd=_REPOSITORY,
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        try:
            assert self._process.stdin is not None  # asked for with PIPE
            with self._process.stdin as pipe:
                pipe.write(json.dumps(self._messages).encode())
            self._served = self._ask_count(_START_SECONDS)
        except (OSError, http.client.HTTPException) as error:
            self._stop()
            raise AnnotationError(
                f"the simulated annotator did not start at {self.base_url}: {error!r} (exit code "
                f"{self._process.returncode}). Its own message stands above; try "
                f"`{shlex.quote(sys.executable)} -c 'import uvicorn'`"
            ) from error
        except BaseException:  # Ctrl-C while starting
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # it may have been ended from outside
            self._served = self.requests
        self._stop()

    def _ask_count(self, timeout: float) -> int:
        # http.client, which never goes through a proxy
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("GET", _COUNT_PATH)
            return int(connection.getresponse().read())

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()  # it holds no state that must be saved
            self._process.wait()


def _frames(posts: pd.DataFrame | None) -> dict[str, list[str]]:
    """The hashes of a clip's frames, in order, by the clip's own."""
    if posts is None or VIDEO_SHA256 not in posts:
        return {}
    pairs = zip(posts[VIDEO_SHA256], posts[IMAGE_SHA256], strict=True)
    return {video: list(shown) for video, shown in pairs if isinstance(video, str)}


def _messages(truth: pd.DataFrame, task: Task, frames: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """The answer to every post of the truth, by the `album_key` of what is shown; none to a clip without `frames`.

    The answer to a clip is drawn as that to its album.

    Raises:
        AnnotationError: two posts of the same images have different truths, so that the images alone
            do not tell which is meant.
    """
    known: dict[str, tuple[str, list[int]]] = {}
    messages = {}
    ids, albums, sizes = (truth[column].tolist() for column in (POST_ID, "images_sha256", "n_images"))
    clips = truth[VIDEO_SHA256].tolist() if VIDEO_SHA256 in truth else [None] * len(truth)
    counts_of = truth[list(task.question_ids)].to_numpy().tolist()
    for post_id, album, clip, n_images, counts in zip(ids, albums, clips, sizes, counts_of, strict=True):
        post = album_key(list(album))
        earlier = known.setdefault(post, (post_id, counts))
        if earlier[1] != counts:
            raise AnnotationError(
                f"the sample's truth: posts {earlier[0]} and {post_id} have the same images, but the counts "
                f"{earlier[1]} and {counts}; the simulated annotator knows a post by its images, so they must agree"
            )
        shown = frames.get(clip, ()) if isinstance(clip, str) else album
        if len(shown):
            message = simulated_message(task, post, counts, n_images, len(shown) // n_images)
            messages[album_key(list(shown))] = message
    return messages


class _App:
    """The server's side, a bare ASGI application: cheap enough for ten thousand posts in seconds."""

    def __init__(self, messages: dict[str, dict[str, Any]]) -> None:
        self._messages = messages
        self._served = 0

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body += event.get("body", b"")
            more = event.get("more_body", False)
        status, reply = self._reply(scope["method"], scope["path"], body)
        payload = json.dumps(reply).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(payload)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    def _reply(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if (method, path) == ("GET", _COUNT_PATH):
            return 200, self._served
        if (method, path) != ("POST", _CHAT_PATH):
            return 404, _error(f"the simulated annotator serves POST {_CHAT_PATH} only, not {method} {path}")
        self._served += 1
        try:
            request = json.loads(body)
            parts = request["messages"][-1]["content"]
            urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
            text = "".join(part["text"] for part in parts if part["type"] == "text")
            images = [base64.b64decode(url.partition(";base64,")[2], validate=True) for url in urls]
            model = request["model"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return 400, _error(f"the request is no chat completion with base64 images: {error!r}")
        known_by = [hashlib.sha256(image).hexdigest() for image in images] if images else [text]
        message = self._messages.get(album_key(known_by))
        if message is None and not images:
            return 404, _error(
                "the simulated annotator drafts a task of the shipped policy only, configs/tasks/ucc.md: set "
                "`annotator: openai` to ask a real LLM about another one"
            )
        if message is None:
            return 404, _error(
                "the simulated annotator knows only the embedded sample, and no post of it has these "
                f"{len(images)} images: set `annotator: openai` to ask a real annotator, or `annotator: human` to use "
                "the manifest's own process labels"
            )
        prompt, completion = len(text) // 4 + 85 * len(images), len(message["content"] or message["refusal"])
        return 200, {
            "id": f"chatcmpl-simulated-{self._served}",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            # 85 tokens per image of low detail, as OpenAI counts for GPT-4o; about four characters per token
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": "simulated"}}


async def _serve(listener: socket.socket, parent: int, messages: dict[str, dict[str, Any]]) -> None:
    import uvicorn  # needed by the server process alone

    config = uvicorn.Config(_App(messages), log_level="error", access_log=False, lifespan="off", timeout_keep_alive=600)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while os.getppid() == parent and not serving.done():
        await asyncio.sleep(_PARENT_CHECK_SECONDS)
    server.should_exit = server.force_exit = True  # the parent is gone, and with it whoever would ask
    await serving


def main() -> None:
    """The server process: takes the number of a listening socket and its parent's id; the answers come by stdin."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    asyncio.run(_serve(socket.socket(fileno=descriptor), parent, json.load(sys.stdin)))


if __name__ == "__main__":
    main()
