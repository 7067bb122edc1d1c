"""Reads what came back: numbers, or a missing value with its reason; the same for single requests and batches."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from model.task import Task
from steps.annotate.ledger import Attempt, Missing

_FILTER_CODES = frozenset({"content_filter", "content_policy_violation"})
_FENCED = re.compile(r"^```[a-z]*\n(.*?)\n?```$", re.DOTALL)
_NUMBERS = re.compile(r"^[0-9]{1,6}(?:[ \t]*,[ \t]*[0-9]{1,6})*$")
_LARGEST = 999_999


class AnswerError(ValueError):
    """A text that is not the numbers that were asked for; `reason` says in what way."""

    def __init__(self, reason: Missing) -> None:
        super().__init__(reason.value)
        self.reason = reason


def parse_answer(text: str, n: int) -> list[int]:
    """The `n` numbers of an answer: separated by commas, on one line, and nothing else.

    White space around, and a code fence around, are tolerated. Numbers picked out of prose would be guesses.

    Raises:
        AnswerError: other text (MALFORMED), or more or fewer numbers than `n` (WRONG_NUMBER).
    """
    line = _unfenced(text)
    if not _NUMBERS.match(line):
        raise AnswerError(Missing.MALFORMED)
    numbers = [int(number) for number in line.split(",")]
    if len(numbers) != n:
        raise AnswerError(Missing.WRONG_NUMBER)
    return numbers


def parse_object(text: str, ids: tuple[str, ...]) -> list[int]:
    """The numbers of a JSON object with exactly the keys `ids`, in their order; as `parse_answer` otherwise.

    Raises:
        AnswerError: no such object, a value that is no whole number, a key twice (MALFORMED), other keys
            (WRONG_NUMBER).
    """
    try:
        pairs = json.loads(_unfenced(text), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        raise AnswerError(Missing.MALFORMED) from None
    if not isinstance(pairs, _Pairs) or len({key for key, _ in pairs}) != len(pairs):
        raise AnswerError(Missing.MALFORMED)
    found = dict(pairs)
    if any(type(value) is not int or not 0 <= value <= _LARGEST for value in found.values()):
        raise AnswerError(Missing.MALFORMED)
    if set(found) != set(ids):
        raise AnswerError(Missing.WRONG_NUMBER)
    return [found[id_] for id_ in ids]


class _Pairs(list[Any]):
    """A JSON object as its pairs: a dictionary would hide a key that stands twice."""


def _unfenced(text: str) -> str:
    text = text.strip()
    fenced = _FENCED.match(text)
    return fenced[1].strip() if fenced else text


@dataclass(frozen=True, slots=True)
class Reply:
    """What one attempt came to; exactly one of `counts` and `missing` is set."""

    counts: tuple[int, ...] | None = None
    missing: Missing | None = None
    raw: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    #: The endpoint may have charged it. Where it does not say how many tokens, the most is to be assumed.
    billed: bool = True

    def attempt(
        self,
        key: str,
        number: int,
        post_id: str,
        source: str,
        *,
        latency: float,
        cost: float | None,
        options: str | None = None,
    ) -> Attempt:
        """The reply as the ledger keeps it."""
        tokens = self.prompt_tokens, self.completion_tokens
        return Attempt(
            key, number, post_id, source, self.raw, self.counts, self.missing, *tokens, latency, cost, options
        )


def read_reply(body: bytes, task: Task, n_images: int, answer_format: str) -> Reply:
    """The answer in the body of a reply with HTTP 200, whatever the body holds."""
    raw = body.decode("utf-8", errors="replace")
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):  # cut, HTML, or not UTF-8
        return Reply(missing=Missing.NOT_JSON, raw=raw)
    return read_completion(reply, raw, task, n_images, answer_format)


def read_completion(reply: Any, raw: str, task: Task, n_images: int, answer_format: str) -> Reply:
    """The answer in a decoded reply; `raw` is what to record where it has no choice to read."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    usage = reply.get("usage") if isinstance(reply, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    tokens = (_natural(usage.get("prompt_tokens")), _natural(usage.get("completion_tokens")))
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Reply(None, Missing.EMPTY, raw, *tokens)
    content, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")

    def missing(reason: Missing) -> Reply:
        return Reply(None, reason, refusal if refusal and isinstance(refusal, str) else str(content), *tokens)

    if refusal:
        return missing(Missing.REFUSAL)
    if finish == "content_filter":
        return missing(Missing.CONTENT_FILTER)
    if finish == "length":
        return missing(Missing.CUT)
    if not isinstance(content, str):
        return missing(Missing.MALFORMED)
    try:
        if answer_format == "json_schema":
            counts = parse_object(content, task.question_ids)
        else:
            counts = parse_answer(content, len(task.questions))
    except AnswerError as error:
        return missing(error.reason)
    try:
        for question, answer in zip(task.questions, counts, strict=True):
            question.class_of(answer, n_images)
    except ValueError:
        return missing(Missing.OUT_OF_RANGE)
    return Reply(tuple(counts), None, content, *tokens)


def _natural(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def status_reason(status: int, codes: set[str | None]) -> Missing:
    """Why a reply with an error status is no answer."""
    if codes & _FILTER_CODES:
        return Missing.CONTENT_FILTER
    if status == 429:
        return Missing.RATE_LIMITED
    if status in (408, 409) or status >= 500:
        return Missing.SERVER_ERROR
    return Missing.REJECTED


def status_remedy(status: int, codes: set[str | None], model: str) -> str | None:
    """What to do about an error status that every other request would meet too; None: it is this request's own."""
    if status in (401, 403):
        return "check OPENAI_API_KEY, and what this key may use"
    if status == 402 or "insufficient_quota" in codes:
        return "add credit or raise the quota of this account, then start the same command again"
    if status == 404:
        return f"check that annotate.model {model!r} and OPENAI_BASE_URL fit together"
    return None
