"""Reads what came back: numbers, or a missing value with its reason; the same for single requests and batches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from model.errors import plain
from model.task import Task
from steps.annotate.faults import Fault, Kind, find_fault
from steps.annotate.ledger import Attempt, LedgerAnswer, Missing

#: More is no usage, and no number that every database takes.
_MOST_TOKENS = 2**31 - 1
_LARGEST = 999_999
_FENCE = re.compile(r"(`{3,}|~{3,})(.*?)(`{3,}|~{3,})", re.DOTALL)
#: Reasoning before the answer, in the tags of DeepSeek, Magistral, Kimi, Seed; the opening one may be in the prompt.
_OPEN, _CLOSE = (rf"[<\[◁]{slash}(?:\w+:)?(?:think|thinking|thought|reasoning)[>\]▷]" for slash in ("", "/"))
_THOUGHT = rf"(?:(?!{_OPEN}|{_CLOSE}).)*{_CLOSE}\s*"
_THOUGHTS = re.compile(rf"(?:{_OPEN})?{_THOUGHT}(?:{_OPEN}{_THOUGHT})*", re.DOTALL | re.IGNORECASE)
#: What may stand around the whole answer, and around a single number.
_EMPHASIS = (("**", "**"), ("__", "__"), ("*", "*"), ("_", "_"), ("`", "`"))
_AROUND = (*_EMPHASIS, ("[", "]"), ("(", ")"), ('"', '"'), ("$", "$"), ("\\boxed{", "}"), ("<answer>", "</answer>"),
           ("<|begin_of_box|>", "<|end_of_box|>"))  # fmt: skip
#: The forms of the same characters in a font of Chinese or Japanese.
_FULL_WIDTH = str.maketrans("０１２３４５６７８９，、．。", "0123456789,,..")
#: Characters of the longest answer that is read; what is longer is no list of numbers.
_LONGEST = 2000
_NUMBER = re.compile(r"[0-9]{1,6}")
_SEPARATOR = re.compile(r"\s*,\s*")
_LINES = re.compile(r"\s*\n\s*")
#: Digits that may be the thousands of one number.
_THOUSANDS = re.compile(r"[0-9],[0-9]{3}(?![0-9])")


class AnswerError(ValueError):
    """A text that is not the numbers that were asked for; `reason` says in what way."""

    def __init__(self, reason: Missing) -> None:
        super().__init__(reason.value)
        self.reason = reason


def parse_answer(text: str, n: int) -> list[int]:
    """The `n` numbers of an answer, separated by commas or one on each line, and nothing else.

    What leaves no doubt is tolerated around them: white space, a code fence, a closed block of reasoning before them,
    bold or italics, brackets around all, one full stop at the end, full-width digits and commas. Numbers picked out of
    prose would be guesses.

    Raises:
        AnswerError: other text (MALFORMED), or more or fewer numbers than `n` (WRONG_NUMBER).
    """
    numbers = _numbers(unwrapped(text).translate(_FULL_WIDTH).strip())
    if numbers is None:
        raise AnswerError(Missing.MALFORMED)
    if len(numbers) != n:
        raise AnswerError(Missing.WRONG_NUMBER)
    return numbers


def _numbers(text: str) -> list[int] | None:
    """The numbers of a text that is nothing else; None: there is a doubt."""
    if len(text) > _LONGEST or _THOUSANDS.search(text):
        return None
    tokens = (_SEPARATOR if "," in text else _LINES).split(text)
    bare = [_without(token, _EMPHASIS) or token for token in tokens]
    if all(_NUMBER.fullmatch(token) for token in bare):
        return [int(token) for token in bare]
    inner = _without(text, _AROUND)
    if inner is None and text.endswith(".") and not re.search(r"\.\s", text):
        inner = text[:-1]
        if inner.endswith("."):
            return None
    return None if inner is None else _numbers(inner.strip())


def _without(text: str, pairs: tuple[tuple[str, str], ...]) -> str | None:
    """`text` without the pair that stands around it; None: none does."""
    for left, right in pairs:
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            return text[len(left) : -len(right)]
    return None


def unwrapped(text: str) -> str:
    """`text` without the closed blocks of reasoning before it and the code fence around it."""
    text = text.strip()
    if (thoughts := _THOUGHTS.match(text)) is not None:
        text = text[thoughts.end() :]
    fenced = _FENCE.fullmatch(text)
    if fenced is None or fenced[3][0] != fenced[1][0]:
        return text
    info, newline, rest = fenced[2].partition("\n")
    return (rest if newline and (not info.strip() or info.strip()[0].isalpha()) else fenced[2]).strip()


def parse_object(text: str, ids: tuple[str, ...]) -> list[int]:
    """The numbers of a JSON object with exactly the keys `ids`, in their order; fence and reasoning as `parse_answer`.

    Raises:
        AnswerError: no such object, a value that is no whole number, a key twice (MALFORMED), other keys
            (WRONG_NUMBER).
    """
    try:
        pairs = json.loads(unwrapped(text), object_pairs_hook=_Pairs)
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
    #: What the endpoint reports in place of an answer, where it charged nothing for it.
    fault: Fault | None = None

    def attempt(
        self, known: LedgerAnswer | None, key: str, post_id: str, source: str, *, latency: float, cost: float | None,
        options: str | None,
    ) -> Attempt:  # fmt: skip
        """The reply as the ledger keeps it, after what was `known` of its key."""
        number, tokens = known.attempts + 1 if known else 1, (self.prompt_tokens, self.completion_tokens)
        return Attempt(
            key, number, post_id, source, self.raw, self.counts, self.missing, *tokens, latency, cost, options
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """What a reply is an answer to."""

    task: Task
    n_images: int
    #: `annotate.format`
    form: str
    #: Names of the fields that were sent beside model and messages.
    fields: Collection[str] = ()
    #: Reads another text than numbers, or raises AnswerError; None: numbers by `form`.
    read: Callable[[str], list[int]] | None = None


def read_reply(status: int, headers: Mapping[str, str], body: bytes, asked: Asked) -> Reply:
    """What a reply means, by its status, headers and body together: an answer, why there is none, or a fault."""
    raw = body.decode("utf-8", errors="replace")
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):  # cut, HTML, or not UTF-8
        decoded = raw
        if status < 400:
            return Reply(missing=Missing.NOT_JSON, raw=raw)
    return read_decoded(status, headers, decoded, raw, asked)


def read_decoded(status: int, headers: Mapping[str, str], body: Any, raw: str, asked: Asked) -> Reply:
    """As `read_reply`, of a body that is decoded; `raw` is what to record where it has no choice to read."""
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    usage = body.get("usage") if isinstance(body, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    tokens = (_natural(usage.get("prompt_tokens")), _natural(usage.get("completion_tokens")))
    fault = find_fault(status, headers, body, asked.fields)
    if fault is None and _ended(choice, _FAILED):
        fault = Fault(Kind.BUSY, f"a reply that ended with {plain(', '.join(_ends(choice)))}")
    if fault is not None:
        return _faulty(fault, raw, tokens)
    reason = next((reason for reason, parts in _STOPPED.items() if _ended(choice, parts)), None)
    message = choice.get("message") if isinstance(choice, dict) else None
    if reason is None and not isinstance(message, dict):
        return Reply(None, Missing.EMPTY, raw, *tokens)
    text, refusal = _text_of(message if isinstance(message, dict) else {})
    reason, counts = Missing.REFUSAL if refusal else reason, None
    if reason is None:
        try:
            counts = tuple(_counts(text, asked))
        except AnswerError as error:
            reason = error.reason
    return Reply(counts, reason, refusal or text or json.dumps(choice), *tokens)


def _counts(text: str | None, asked: Asked) -> list[int]:
    """
    Raises:
        AnswerError: as `parse_answer`; or a number that its question does not allow.
    """
    if text is None:
        raise AnswerError(Missing.MALFORMED)
    if asked.read is not None:
        return asked.read(text)
    task = asked.task
    if asked.form == "json_schema":
        counts = parse_object(text, task.question_ids)
    else:
        counts = parse_answer(text, len(task.questions))
    try:
        for question, answer in zip(task.questions, counts, strict=True):
            question.class_of(answer, asked.n_images)
    except ValueError:
        raise AnswerError(Missing.OUT_OF_RANGE) from None
    return counts


#: Parts of the words for why the model stopped: the protocol's, and those of the models behind gateways.
_STOPPED = {
    Missing.REFUSAL: ("refusal",),
    Missing.CONTENT_FILTER: (
        "filter", "safety", "prohibited", "blocklist", "spii", "recitation", "sensitive", "armor", "guardrail",
    ),
    Missing.CUT: ("length", "max_", "token_limit", "context_window", "incomplete", "truncat"),
}  # fmt: skip
#: The same, of a model that failed.
_FAILED = ("error", "fail", "abort", "cancel", "timeout", "insufficient")


def _ended(choice: Any, parts: tuple[str, ...]) -> bool:
    """Whether the model stopped for such a reason, by the protocol's word or that of the model behind a gateway."""
    return any(part in end for end in _ends(choice) for part in parts)


def _ends(choice: Any) -> list[str]:
    reasons = (choice.get("finish_reason"), choice.get("native_finish_reason")) if isinstance(choice, dict) else ()
    return [reason.lower() for reason in reasons if isinstance(reason, str)]


def _text_of(message: dict[str, Any]) -> tuple[str | None, str]:
    """The text of a message, None where it has none that is surely whole, and its refusal.

    Content is a text, or a list of typed parts. Parts that hold reasoning are left out, as are fields beside the
    content (`reasoning`, `reasoning_content`).
    """
    content, refusal = message.get("content"), message.get("refusal")
    refusal = refusal if isinstance(refusal, str) else json.dumps(refusal) if refusal else ""
    if isinstance(content, str):
        return content, refusal
    texts = []
    for part in content if isinstance(content, list) else ():
        kind, value = (part.get("type"), part.get("text")) if isinstance(part, dict) else ("text", part)
        if kind == "refusal":
            refusal = refusal or str(part.get("refusal"))
        elif kind in ("text", "output_text") and isinstance(value, str):
            texts.append(value)
        elif kind not in ("reasoning", "thinking", "redacted_thinking", "summary_text", "reasoning_text"):
            return None, refusal
    texts = [text for text in texts if text]
    # digits that meet where two parts do: one number, or two
    doubt = any(one[-1].isdigit() and other[0].isdigit() for one, other in pairwise(texts))
    return (None if doubt or not texts else "".join(texts)), refusal


_REASONS = {
    Kind.FLAGGED: Missing.CONTENT_FILTER,
    Kind.CUT: Missing.CUT,
    Kind.RATE: Missing.RATE_LIMITED,
    Kind.BUSY: Missing.SERVER_ERROR,
}


def _faulty(fault: Fault, raw: str, tokens: tuple[int | None, int | None]) -> Reply:
    if any(tokens) and fault.kind not in (Kind.FLAGGED, Kind.CUT):  # charged: an attempt like any other, and counted
        return Reply(None, Missing.ERROR, raw, tokens[0] or 0, tokens[1] or 0)
    return Reply(None, _REASONS.get(fault.kind, Missing.REJECTED), raw, *tokens, billed=False, fault=fault)


def _natural(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None
