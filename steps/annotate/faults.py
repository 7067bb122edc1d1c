"""What an error of an endpoint means, read from its status, headers and body together.

Endpoints that speak the same protocol report errors in many forms: under a status of their own or in a reply with HTTP
200, as an object, a text, a list or a page of HTML, and a status of 403 may mean the key or this one post. The words
below are those of documented bodies: OpenAI, Azure, OpenRouter, Gemini, xAI, DeepSeek, Qwen, Zhipu, MiniMax, Mistral,
LiteLLM, vLLM.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from model.errors import plain
from steps.annotate.rates import seconds_of


class Kind(Enum):
    """What a fault is about."""

    #: This post's own: its content was flagged, its answer was cut, or the request is refused for another reason.
    FLAGGED = auto()
    CUT = auto()
    REJECTED = auto()
    #: A field of the request that the model does not take, whatever the post.
    FIELD = auto()
    #: It passes: wait, and repeat the request.
    RATE = auto()
    BUSY = auto()
    #: Every other request would meet it too.
    KEY = auto()
    CREDIT = auto()
    MODEL = auto()
    PROXY = auto()


@dataclass(frozen=True, slots=True)
class Fault:
    """What one reply says that is no answer."""

    kind: Kind
    #: The endpoint's own words, on one line.
    message: str
    #: Seconds that the endpoint asks to wait; 0 where it does not say.
    wait: float = 0.0
    #: Of kind FIELD: the field's name.
    field: str = ""
    #: The endpoint asks not to repeat the request (`x-should-retry: false`, as OpenAI's own client reads it).
    last: bool = False

    @property
    def passes(self) -> bool:
        """Whether the same request may be answered later."""
        return self.kind in (Kind.RATE, Kind.BUSY) and not self.last

    def remedy(self, model: str) -> str:
        """What to do about it where every other request would meet it too, else ""."""
        return {
            Kind.KEY: "check OPENAI_API_KEY, and what this key may use",
            Kind.CREDIT: "add credit or raise the quota of this account, then start the same command again",
            Kind.MODEL: f"check that annotate.model {model!r} and OPENAI_BASE_URL fit together",
            Kind.FIELD: f"set or remove the field {self.field!r} in annotate.request_fields"
            if self.field != "response_format"
            else "set annotate.format: numbers, which needs no response_format",
            Kind.PROXY: "check the user and password of the proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY",
        }.get(self.kind, "")


def _signs(codes: str, texts: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    return re.compile(codes), re.compile(texts, re.IGNORECASE)


#: How a kind is told: by its codes, in lower case and without punctuation, and by its texts. One that is not here is
#: told by the status alone.
_SIGNS = {
    Kind.FLAGGED: _signs(
        r"content(?:filter|policy|safety|violation|blocked)|(?:policy|safety)violation|sensitive(?:content|word)|"
        r"moderation|responsibleai|datainspection|prohibitedcontent|promptblocked|imagesafety|guardrailintervened|"
        r"\b(?:safety|blocklist|sensitive|flagged|1301)\b",
        # a word for it beside one for what was sent or came back
        r"(?s:\A(?=.*\b(?:prompts?|inputs?|outputs?|contents?|images?|messages?|requests?|responses?|text)\b)"
        r".*\b(?:flagged|moderat\w*|inappropriate|unsafe|offensive|high risk|exists? risk|new_sensitive|nsfw|"
        r"sensitive (?:content|words?|information|topics?|material)|prohibited content|"
        r"safety (?:system|filter|check)\w*|content[ _](?:filter\w*|management policy|polic\w*)|"
        r"(?:prompt|input|output|response) (?:was |is )?blocked|"
        r"violat\w* (?:(?:our|the|its|\w+'s|usage|use|content|acceptable|safety|community|provider|ai) ){0,4}"
        r"(?:polic|guideline)))|"
        # a guardrail that did its work, not one that is not found
        r"guardrail.{0,40}(?:violat|fail|interven|block|trigger)|(?:violat|block|reject|trigger).{0,40}guardrail",
    ),
    Kind.CREDIT: _signs(
        r"insufficient(?:quota|balance|credit|fund)|billing|arrear|paymentrequired|quotaexhausted",
        r"insufficient[ _](?:account )?(?:quota|balance|credit|fund)|credit balance is too low|out of credits?\b|"
        r"not enough credits?|requires more credits?|exceeded your current quota|reached your .{0,20}usage limits?|"
        r"in arrears|overdue (?:balance|payment|bill)",
    ),
    Kind.CUT: _signs(r"maxtokensexceeded", r"max_tokens_exceeded|(?:max_\w*tokens|output limit).{0,40}\bwas reached"),
    Kind.FIELD: _signs(
        r"unsupported|extraforbidden|unknownparameter",
        r"unsupported|not support|n't support|extra.?(?:inputs|fields|forbidden)|not permitted|unrecognized|unknown|"
        r"deprecated|only\b.{0,40}\b(?:allowed|supported)|may only be|must be (?:set to )?1\b",
    ),
    Kind.RATE: _signs(
        r"ratelimit|toomanyrequests|throttl|resourceexhausted|requestlimit",
        r"rate.?limit|too many requests|quota exceeded for quota metric",
    ),
    Kind.KEY: _signs(
        r"apikey|authentication|unauth(?:enticated|orized)|accountdeactivated",
        r"(?:invalid|incorrect|missing|no|wrong) (?:api.?key|authentication|credentials)|"
        r"api key (?:is )?(?:not valid|invalid)",
    ),
    Kind.MODEL: _signs(
        r"modelnot(?:found|exist)|invalidmodel|deploymentnotfound",
        r"\bmodels?\b[:/]?\s?(?:\S+\s)?(?:does |is |was )?not (?:exist|found)\b|not a valid model|"
        r"(?:unknown|invalid) model(?: name| id|:)",
    ),
}
#: Such a text is about who asks, whatever else it says.
_ACCOUNT = re.compile(
    r"\b(?:your account|account (?:is|has|was)|organi[sz]ation|subscription|deactivated|suspended|terminated|banned|"
    r"countr\w+|regions?|territor\w+|your (?:ip|resource|project|team)|data policy)\b",
    re.IGNORECASE,
)
_RETRY = re.compile(r"(?:retry|try again) (?:in|after) ((?:[\d.]+ ?(?:ms|s|m|h))+)", re.IGNORECASE)

#: Parts of codes that stand for a status of HTTP, where an error in a reply of HTTP 200 has no number.
_STATUS_CODES = {"invalidrequest": 400, "badrequest": 400, "invalidargument": 400, "permission": 403,
                 "forbidden": 403}  # fmt: skip
#: Of 4xx: the same request may be served later. 424, 498 and 499 are those of gateways.
_BUSY_STATUSES = (408, 409, 424, 425, 498, 499)

#: Keys of an error whose values are codes, texts, seconds, names of fields, and further errors.
_CODES = frozenset({"code", "type", "status", "reason", "error_type", "error_code", "provider_code", "status_code"})
_TEXTS = frozenset(
    {"message", "msg", "detail", "details", "description", "error", "status_msg", "title", "error_message", "raw"}
)
_SECONDS = frozenset({"retrydelay", "retry_after", "retry_after_seconds"})
_INNER = _TEXTS | {"errors", "innererror", "inner_error", "metadata", "base_resp"}
_DEEPEST = 8
_LONGEST = 2000  # characters of a text that are looked through


@dataclass
class _Said:
    """What an error says, from the outside to the inside."""

    codes: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    seconds: float = 0.0
    flagged: bool = False

    def read(self, value: Any, depth: int = 0) -> None:
        if depth > _DEEPEST:
            return
        if isinstance(value, str):
            inner = _decoded(value)
            if inner is not None:
                self.read(inner, depth + 1)
            elif value.strip():
                self.texts.append(value)
                if len(value) < 60 and " " not in value.strip():  # {"error": "insufficient_quota"}
                    self.codes.append(value)
        elif isinstance(value, list):
            for each in value:
                self.read(each, depth + 1)
        elif isinstance(value, dict):
            self._read_mapping(value, depth)

    def _read_mapping(self, value: dict[str, Any], depth: int) -> None:
        for key, inner in value.items():
            name = key.lower()
            if name in _CODES and isinstance(inner, str | int):
                self.codes.append(str(inner))
            elif name in _SECONDS and isinstance(inner, str | int | float):
                self.seconds = max(self.seconds, seconds_of(str(inner)) or 0.0)
            elif name == "param" and isinstance(inner, str):
                self.fields.append(inner)
            elif name == "loc" and isinstance(inner, list):
                self.fields += [str(part) for part in inner[-1:]]
            elif name in ("reasons", "flagged_input") and inner:
                self.flagged = True
            elif name in _INNER:
                self.read(inner, depth + 1)

    @property
    def bare_codes(self) -> str:
        """In the form of `_SIGNS`."""
        return " ".join(re.sub(r"[^a-z0-9]", "", code.lower()) for code in self.codes)

    @property
    def text(self) -> str:
        return " ".join(self.texts)[:_LONGEST]

    def coded(self, kind: Kind) -> bool:
        return _SIGNS[kind][0].search(self.bare_codes) is not None

    def worded(self, kind: Kind) -> bool:
        return _SIGNS[kind][1].search(self.text) is not None

    def says(self, kind: Kind) -> bool:
        return self.coded(kind) or self.worded(kind)


def _decoded(text: str) -> Any:
    """The object or list that a text is the JSON of; None: it is a text."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def _is_error(error: Any) -> bool:
    """Whether it is an error at all: some servers send one with empty fields beside each answer."""
    return any(error.values()) if isinstance(error, dict) else bool(error)


def _reported(body: Any) -> Iterator[Any]:
    """The parts of a body of HTTP 200 that report an error; nothing where it holds a completion, or none of either."""
    if isinstance(body, list):
        for each in body:
            yield from _reported(each)
    if not isinstance(body, dict):
        return
    choices, base = body.get("choices"), body.get("base_resp")
    if _is_error(body.get("error")):
        # what stands beside it may name its code: {"code": "permission-denied", "error": "Content violates …"}
        yield {key: value for key, value in body.items() if key != "choices"}
    elif isinstance(base, dict) and base.get("status_code"):
        yield base
    elif isinstance(choices, list):
        first = choices[0] if choices else None
        if isinstance(first, dict) and _is_error(first.get("error")):
            yield first["error"]
    elif any(body.get(key) for key in ("code", "detail", "errors")) or any(
        isinstance(body.get(key), str) for key in ("message", "msg")
    ):
        yield body


def find_fault(status: int, headers: Mapping[str, str], body: Any, sent: Collection[str] = ()) -> Fault | None:
    """What a reply reports instead of an answer; None: it reports no error.

    Args:
        status: of HTTP. Where it is no error, the code in the body is read in its place.
        headers: names in lower case, or without regard to case.
        body: decoded, or the text of a body that is no JSON.
        sent: the fields of the request, without model and messages.
    """
    errors = [body] if status >= 400 else list(_reported(body))
    if not errors:
        return None
    said = _Said()
    page = re.sub(r"<[^>]*>", " ", body) if isinstance(body, str) and body.lstrip().startswith("<") else ""
    for error in () if page else errors:  # of a page of HTML only the status tells
        said.read(error)
    message = plain(" ".join((page or said.text).split()))[:500] or ", ".join(said.codes) or "without a message"
    if status >= 400:
        message = f"HTTP {status}: {message}"
    else:
        status = next((int(code) for code in said.codes if re.fullmatch(r"[45]\d\d", code)), 0)
        status = status or next((of for part, of in _STATUS_CODES.items() if part in said.bare_codes), 0)
        message = f"an error in a reply of HTTP 200: {message}" + f" (code {status})" * bool(status)
    if (found := _RETRY.search(said.text)) is not None:
        said.seconds = max(said.seconds, seconds_of(found[1].replace(" ", "").lower()) or 0.0)
    wait = max(_retry_after(headers), said.seconds)
    refused = _refused_field(said, sent) if status in (400, 422) else ""
    kind = _kind(status, said, refused)
    return Fault(kind, message, wait, refused if kind is Kind.FIELD else "", headers.get("x-should-retry") == "false")


def _kind(status: int, said: _Said, refused: str) -> Kind:
    """The kind of a fault; the order matters, since one error may show signs of several.

    Args:
        status: 0 where neither HTTP nor the body gives one.
        refused: a field that the endpoint says it does not take.
    """
    by_words = status in (0, 400, 403)  # such a status leaves it to the words
    if status == 407:
        return Kind.PROXY
    if status == 401:
        return Kind.KEY
    if status != 402 and (said.flagged or _flagged(status, said)):
        return Kind.FLAGGED
    # Gemini calls a limit of requests a minute a quota too, and says when to come back
    passes = said.coded(Kind.RATE) or said.seconds > 0
    if status == 402 or said.coded(Kind.CREDIT) or (said.worded(Kind.CREDIT) and not passes):
        return Kind.CREDIT
    if said.says(Kind.CUT):
        return Kind.CUT
    if refused:
        return Kind.FIELD
    if status == 429 or said.coded(Kind.RATE) or (by_words and said.worded(Kind.RATE)):
        return Kind.RATE
    if by_words and said.says(Kind.KEY):
        return Kind.KEY
    if status == 404 or (status < 500 and said.says(Kind.MODEL)):
        return Kind.MODEL
    if status == 403:
        return Kind.KEY
    # an error of HTTP 200 without a code that anybody could read: it may pass
    return Kind.BUSY if status in (0, *_BUSY_STATUSES) or status >= 500 else Kind.REJECTED


def _flagged(status: int, said: _Said) -> bool:
    """Whether it is the content of this request that is refused, and not the one who asks."""
    if _ACCOUNT.search(said.text):
        return False
    if said.coded(Kind.FLAGGED):
        return status not in (502, 503, 504)  # `moderation_unavailable`
    return said.worded(Kind.FLAGGED) and status < 500 and status not in (404, 429)


def _refused_field(said: _Said, sent: Collection[str]) -> str:
    """The field of the request that the endpoint says it does not take; "": none, or only its value is wrong."""
    if not said.says(Kind.FIELD):
        return ""
    if said.fields:  # `response_format.json_schema`, `messages[0].content`
        return next((name for path in said.fields if (name := re.split(r"[.\[]", path)[0]) in sent), "")
    # without a `param`: the first one that its words name; `user` or `seed` may be a word like any other
    places = {name: found.start() for name in sent if (found := re.search(_named(name), said.text))}
    return min(places, key=places.__getitem__, default="")


def _named(name: str) -> str:
    word = re.escape(name)
    return rf"\b{word}\b" if "_" in name or name == "temperature" else rf"['\"`]{word}['\"`]"


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the headers ask to wait, 0 where they do not say; the caller's deadline bounds them."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with suppress(ValueError):  # absent, or no number
            return max(0.0, float(headers.get(name, "")) / unit)
    with suppress(ValueError):  # absent, or no date
        then = _timestamp(headers.get("retry-after", ""))
        now = time.time()
        with suppress(ValueError):
            now = _timestamp(headers.get("date", ""))  # the clock that wrote it: ours may differ
        return max(0.0, then - now)
    return 0.0


def _timestamp(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp()
