"""A reply that is no answer is this post's own, or passes, or stops the run: by status, headers and body together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from steps.annotate.faults import Fault, Kind, find_fault

FIELDS = ("max_tokens", "temperature")


def openai(message: str, code: Any = None, type_: str = "invalid_request_error", param: str | None = None) -> Any:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


# The bodies are those of public documentation and reports.
FLAGGED: dict[str, tuple[int, Any]] = {
    "OpenRouter": (
        403,
        {
            "error": {
                "code": 403,
                "message": "The chosen model requires moderation and your input was flagged",
                "metadata": {"reasons": ["sexual"], "flagged_input": "...", "provider_name": "p"},
            }
        },
    ),
    "OpenRouter, the reasons alone": (
        403,
        {"error": {"code": 403, "message": "Forbidden", "metadata": {"reasons": ["x"]}}},
    ),
    "OpenRouter, within 200": (
        200,
        {"error": {"code": 403, "message": "Input flagged", "metadata": {"reasons": ["x"]}}},
    ),
    "OpenRouter, by a provider's raw body": (
        400,
        {
            "error": {
                "code": 400,
                "message": "Provider returned error",
                "metadata": {"raw": '{"error": {"code": "content_policy_violation", "message": "no"}}'},
            }
        },
    ),
    "Azure": (
        400,
        {
            "error": {
                "message": "The response was filtered due to the prompt triggering Azure OpenAI's content "
                "management policy.",
                "type": None,
                "param": "prompt",
                "code": "content_filter",
                "status": 400,
                "innererror": {
                    "code": "ResponsibleAIPolicyViolation",
                    "content_filter_result": {"sexual": {"filtered": True, "severity": "high"}},
                },
            }
        },
    ),
    "Azure, the inner error alone": (
        400,
        {"error": {"message": "Bad request", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
    ),
    "OpenAI": (400, openai("Your request was rejected as a result of our safety system.", "content_policy_violation")),
    "OpenAI, of a picture": (
        400,
        openai("Your input image may hold content that our safety system forbids.", "moderation_blocked"),
    ),
    "OpenAI, of a reasoning model": (
        400,
        openai("Invalid prompt: your prompt was flagged as potentially violating our usage policy.", "invalid_prompt"),
    ),
    "xAI": (
        403,
        {
            "code": "The caller does not have permission to execute the specified operation",
            "error": "Content violates usage guidelines. Team: t, API key ID: k, Failed check: SAFETY_CHECK_TYPE_BIO",
        },
    ),
    "xAI, short": (403, {"code": "permission-denied", "error": "Content violates usage guidelines. "}),
    "DeepSeek": (400, openai("Content Exists Risk", "invalid_request_error")),
    "DeepSeek, a detail": (400, {"detail": "Content Exists Risk"}),
    "Qwen": (400, openai("Input data may contain inappropriate content.", "data_inspection_failed")),
    "Qwen, its words alone": (
        400,
        openai("<400> InternalError.Algo.DataInspectionFailed: Input text data may contain inappropriate content."),
    ),
    "one-api": (500, openai("input contains sensitive words: [x]", "sensitive_words_detected", "new_api_error")),
    "Moonshot": (400, openai("The request was rejected because it was considered high risk", None, "content_filter")),
    "Zhipu": (
        400,
        {
            "error": {"code": "1301", "message": "unsafe or sensitive content"},
            "contentFilter": [{"level": 1, "role": "user"}],
        },
    ),
    "MiniMax": (200, {"choices": None, "base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}),
    "legal reasons": (451, {"message": "The prompt was blocked by the content policy"}),
    "unprocessable": (422, {"detail": [{"type": "moderation", "msg": "flagged"}]}),
    "Cloudflare": (
        400,
        {"success": False, "error": [{"code": 2016, "message": "Prompt blocked due to security rules"}]},
    ),
    "OpenRouter's guardrail": (403, {"error": {"code": 403, "message": "Blocked by our content guardrails"}}),
    "LiteLLM's guardrail": (400, openai("Violated guardrail policy", "400")),
    "Portkey": (446, {"error": {"message": "The guardrail checks defined in the config failed.", "type": "hooks"}}),
    "in a word": (403, {"detail": "NSFW content detected"}),
}

KINDS: dict[str, tuple[int, Any, Kind]] = {
    "a bad key": (401, openai("Incorrect API key provided", "invalid_api_key"), Kind.KEY),
    "a key without the right": (403, openai("You do not have access to this endpoint"), Kind.KEY),
    "a key of another region": (
        403,
        openai("Country, region, or territory not supported", "unsupported_country_region_territory"),
        Kind.KEY,
    ),
    "an account that was closed": (
        403,
        openai("Your account was deactivated: its requests violated our usage policies", "account_deactivated"),
        Kind.KEY,
    ),
    "Azure's resource that was blocked": (
        403,
        openai("Your resource has been temporarily blocked because its requests may violate our content policy", "403"),
        Kind.KEY,
    ),
    "Anthropic's usage limit": (400, openai("You have reached your specified API usage limits."), Kind.CREDIT),
    "OpenAI's reasoning model that was cut": (
        400,
        openai("Could not finish the message because max_tokens or model output limit was reached."),
        Kind.CUT,
    ),
    "a code alone": (200, {"code": 429}, Kind.RATE),
    "a page of HTML": (403, "<html><title>Blocked</title><p>Your request holds sensitive content</p></html>", Kind.KEY),
    "an empty body": (403, "", Kind.KEY),
    "Gemini's bad key": (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "API key not valid. Please pass a valid API key.",
                    "status": "INVALID_ARGUMENT",
                    "details": [{"reason": "API_KEY_INVALID"}],
                }
            }
        ],
        Kind.KEY,
    ),
    "a bad key within 200": (200, {"error": {"code": "401", "message": "no"}}, Kind.KEY),
    "credit": (402, {"error": {"code": 402, "message": "Insufficient credits"}}, Kind.CREDIT),
    "quota": (429, openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota"), Kind.CREDIT),
    "quota, its words alone": (
        429,
        {"error": "You exceeded your current quota, please check your plan and billing details."},
        Kind.CREDIT,
    ),
    "quota as a detail": (429, {"detail": {"code": "insufficient_quota"}}, Kind.CREDIT),
    "quota as a text": (429, {"message": "insufficient_quota"}, Kind.CREDIT),
    "quota in a list": (429, [{"error": {"code": 429, "type": "InsufficientQuota"}}], Kind.CREDIT),
    "quota within 200": (200, {"error": {"code": "insufficient_quota", "message": "quota"}}, Kind.CREDIT),
    "Anthropic's credit": (400, openai("Your credit balance is too low to access the Anthropic API."), Kind.CREDIT),
    "MiniMax's credit": (200, {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, Kind.CREDIT),
    "Gemini's limit a minute, which it calls a quota": (
        429,
        [
            {
                "error": {
                    "code": 429,
                    "status": "RESOURCE_EXHAUSTED",
                    "message": "You exceeded your current quota, please check your plan and billing details.",
                    "details": [{"@type": "RetryInfo", "retryDelay": "30s"}],
                }
            }
        ],
        Kind.RATE,
    ),
    "a rate limit": (429, openai("Rate limit reached", "rate_limit_exceeded", "tokens"), Kind.RATE),
    "a rate limit that sells more": (
        429,
        openai("Rate limit reached. Try again in 7.5s. Need more? Visit /settings/billing"),
        Kind.RATE,
    ),
    "a rate limit within 200": (200, {"error": {"code": 429, "message": "slow"}, "user_id": "u"}, Kind.RATE),
    "its code as a text": (200, {"error": {"code": "429", "message": "slow"}}, Kind.RATE),
    "its code in words": (200, {"error": {"code": "rate_limit_exceeded", "message": "slow"}}, Kind.RATE),
    "its words alone": (200, {"error": "Rate limit exceeded"}, Kind.RATE),
    "its words as a detail": (200, {"detail": "Too Many Requests"}, Kind.RATE),
    "within the first choice": (
        200,
        {"choices": [{"error": {"code": 429, "message": "slow"}, "message": {"content": "1,"}}]},
        Kind.RATE,
    ),
    "MiniMax's rate limit": (200, {"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, Kind.RATE),
    "a provider that is down": (200, {"error": {"code": 502, "message": "Provider returned error"}}, Kind.BUSY),
    "an error without a code": (200, {"error": {"message": "no model loaded"}}, Kind.BUSY),
    "an error as a text": (200, {"error": "upstream"}, Kind.BUSY),
    "a message alone": (200, {"message": "internal error"}, Kind.BUSY),
    "a gateway's page": (502, "<html><h1>502 Bad Gateway</h1></html>", Kind.BUSY),
    "overloaded": (529, {"error": {"type": "overloaded_error", "message": "Overloaded"}}, Kind.BUSY),
    "no such model": (404, openai("The model `x` does not exist", "model_not_found"), Kind.MODEL),
    "no such model by 400": (400, openai("Model Not Exist"), Kind.MODEL),
    "no such model within 200": (200, {"error": {"code": 404, "message": "No endpoints found"}}, Kind.MODEL),
    "a proxy": (407, "<html>Proxy Authentication Required</html>", Kind.PROXY),
    "too long": (400, openai("maximum context length is 8192 tokens", "context_length_exceeded"), Kind.REJECTED),
    "too large": (413, "", Kind.REJECTED),
    "a bad picture": (400, openai("Unsupported image type", "invalid_image", param="messages"), Kind.REJECTED),
    "a header whose name is sensitive": (400, openai("Request has a sensitive header: content-length"), Kind.REJECTED),
    "a name of which the case counts": (400, openai("The request's roles are case-sensitive"), Kind.REJECTED),
    "a policy about size": (400, openai("The image is too large and violates the size policy"), Kind.REJECTED),
    "a picture's address": (
        400,
        openai("Image URLs are prohibited in this request", "invalid_image_url"),
        Kind.REJECTED,
    ),
    "a part of the wrong type": (
        400,
        openai("Invalid type for content: expected a string", "invalid_type", param="messages[0].content"),
        Kind.REJECTED,
    ),
    "a bad picture beside the name of a field": (
        400,
        openai("Unsupported image (max_tokens=64, temperature=0)", "invalid_image", param="messages[0].content"),
        Kind.REJECTED,
    ),
    "a picture that is not found": (400, openai("The model could not read the image: file not found"), Kind.REJECTED),
    "a picture that is overdue": (400, openai("the image's signed URL is overdue"), Kind.REJECTED),
    "a guardrail that is not there": (
        400,
        openai("The guardrail identifier provided in the request does not exist"),
        Kind.REJECTED,
    ),
    "a key that is prohibited": (403, openai("This API key is prohibited from making this request"), Kind.KEY),
    "an identity's policy": (403, {"message": "Not authorized: an identity-based policy denies the request"}, Kind.KEY),
    "a moderation that is down": (503, {"error": {"code": "moderation_unavailable", "message": "later"}}, Kind.BUSY),
    "a gateway's own status": (498, {"error": {"code": "capacity_exceeded", "message": "full"}}, Kind.BUSY),
    "no such model, in other words": (400, openai("Unknown model: x"), Kind.MODEL),
    "a kind of error within 200, rejected": (
        200,
        {"type": "error", "error": {"type": "invalid_request_error", "message": "image too big"}},
        Kind.REJECTED,
    ),
    "a kind of error within 200, the key": (200, {"error": {"type": "permission_error", "message": "no"}}, Kind.KEY),
    "a bad request within 200": (200, {"error": {"code": 400, "message": "bad"}}, Kind.REJECTED),
    "a limit that is too large": (
        400,
        openai("max_tokens is too large: 64. This model supports at most 32.", "invalid_value", param="max_tokens"),
        Kind.REJECTED,
    ),
}

REFUSED: dict[str, tuple[int, Any, str]] = {
    "OpenAI's limit": (
        400,
        openai(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
            "instead.",
            "unsupported_parameter",
            param="max_tokens",
        ),
        "max_tokens",
    ),
    "OpenAI's temperature": (
        400,
        openai(
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is "
            "supported.",
            "unsupported_value",
            param="temperature",
        ),
        "temperature",
    ),
    "the codes alone": (400, openai("no", "unsupported_parameter", param="max_tokens"), "max_tokens"),
    "without a param": (
        400,
        {
            "error": {
                "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.",
                "code": "invalid_request_body",
            }
        },
        "max_tokens",
    ),
    "LiteLLM": (
        400,
        openai("litellm.UnsupportedParamsError: x does not support parameters: {'temperature': 0.0}", "400"),
        "temperature",
    ),
    "Mistral": (
        422,
        {
            "object": "error",
            "message": {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "max_tokens"],
                        "msg": "Extra inputs are not permitted",
                        "input": 64,
                    }
                ]
            },
        },
        "max_tokens",
    ),
    "Anthropic": (400, openai("`temperature` is deprecated for this model."), "temperature"),
    "Moonshot": (400, openai("invalid temperature: only 1 is allowed for this model"), "temperature"),
    "Anthropic's reasoning": (400, openai("`temperature` may only be set to 1 with thinking"), "temperature"),
    "a path for a param": (400, openai("Unsupported", param="temperature.value"), "temperature"),
    "within 200": (
        200,
        {"error": {"code": 400, "message": "'temperature' is not supported", "param": "temperature"}},
        "temperature",
    ),
}


def found(status: int, headers: dict[str, str], body: Any, sent: Sequence[str] = FIELDS) -> Fault:
    fault = find_fault(status, headers, body, sent)
    assert fault is not None
    return fault


@pytest.mark.parametrize("case", FLAGGED)
def test_content_that_was_flagged_is_known_whatever_the_status(case: str) -> None:
    status, body = FLAGGED[case]
    fault = found(status, {}, body)
    assert fault.kind is Kind.FLAGGED
    assert fault.remedy("m") == ""


@pytest.mark.parametrize("case", KINDS)
def test_any_other_error_is_of_the_kind_that_its_words_and_codes_say(case: str) -> None:
    status, body, kind = KINDS[case]
    fault = found(status, {}, body)
    assert fault.kind is kind
    assert fault.passes == (kind in (Kind.RATE, Kind.BUSY))
    assert bool(fault.remedy("m")) == (kind in (Kind.KEY, Kind.CREDIT, Kind.MODEL, Kind.PROXY))
    assert "\n" not in fault.message
    assert "<" not in fault.message


@pytest.mark.parametrize("case", REFUSED)
def test_a_field_that_the_model_does_not_take_is_named(case: str) -> None:
    status, body, name = REFUSED[case]
    fault = found(status, {}, body)
    assert (fault.kind, fault.field) == (Kind.FIELD, name)


def test_a_form_of_answer_that_the_model_does_not_take_is_remedied_by_the_other_form() -> None:
    body = openai("Invalid parameter: 'response_format' is not supported", param="response_format")
    fault = found(400, {}, body, (*FIELDS, "response_format"))
    assert "annotate.format: numbers" in fault.remedy("m")


def test_an_endpoint_that_asks_not_to_be_asked_again_is_not() -> None:
    for value, passes in (("false", False), ("true", True)):
        fault = found(500, {"x-should-retry": value}, openai("no"))
        assert (fault.kind, fault.passes) == (Kind.BUSY, passes)


def test_a_field_that_was_not_sent_is_not_refused() -> None:
    fault = found(400, {}, openai("'seed' is not supported", "unsupported_parameter", param="seed"))
    assert fault.kind is Kind.REJECTED


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": "1"}}], "error": None},
        {"choices": [{"message": {"content": "1"}}], "error": {"code": 0, "message": "", "param": None}},
        {"choices": [{"message": {"content": "1"}, "error": {"code": None}}]},
        {"choices": [{"message": {"content": "1"}, "error": None}], "base_resp": {"status_code": 0, "status_msg": ""}},
        {"choices": [{"message": {"content": "the error: insufficient_quota"}}]},
        {"choices": []},
        {"message": {"role": "assistant", "content": "1"}},
        [1, 2],
        None,
    ],
)
def test_a_completion_or_what_is_neither_reports_no_error(body: Any) -> None:
    assert find_fault(200, {}, body, FIELDS) is None


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after": "7"}, openai("slow"), 7.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, openai("slow"), 1.5),
        ({}, [{"error": {"code": 429, "details": [{"retryDelay": "30s"}]}}], 30.0),
        ({}, {"error": {"code": 429, "metadata": {"retry_after": 3}}}, 3.0),
        # the server's clock is not ours
        (
            {"retry-after": "Fri, 01 Jan 2100 00:00:09 GMT", "date": "Fri, 01 Jan 2100 00:00:00 GMT"},
            openai("slow"),
            9.0,
        ),
        ({}, openai("Rate limit reached. Please try again in 1m7.66s. Visit /billing"), 67.66),
        ({}, openai("Please retry after 10 seconds."), 10.0),
        ({"retry-after": "soon"}, openai("slow"), 0.0),
        ({"retry-after": "nan"}, openai("slow"), 0.0),
    ],
)
def test_the_time_to_wait_is_read_from_headers_and_body(headers: dict[str, str], body: Any, seconds: float) -> None:
    fault = found(429, headers, body)
    assert fault.wait == seconds
