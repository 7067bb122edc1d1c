"""Numbers are read or the answer is missing; nothing is picked out of prose."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from model.task import load_task
from steps.annotate.ledger import Missing
from steps.annotate.reply import AnswerError, Asked, Reply, parse_answer, parse_object, read_reply


def reason(parse: Callable[..., object], text: str, expected: object) -> Missing:
    with pytest.raises(AnswerError) as caught:
        parse(text, expected)
    return caught.value.reason


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,2,3", [1, 2, 3]),
        ("1, 2 ,3\n", [1, 2, 3]),
        ("  0,0,0  ", [0, 0, 0]),
        ("```\n1,2,3\n```", [1, 2, 3]),
        ("```text\n1,2,3\n```\n", [1, 2, 3]),
        ("007,2,3", [7, 2, 3]),
        ("1,\n2,3", [1, 2, 3]),
        ("1,2,3.", [1, 2, 3]),
        ("1, 2, 3.\n", [1, 2, 3]),
        ("1\n2\n3", [1, 2, 3]),
        ("1 \n\n 2\r\n3\n", [1, 2, 3]),
        ("1\n2\n3.", [1, 2, 3]),
        ("**1, 2, 3**", [1, 2, 3]),
        ("**1**, **2**, **3**", [1, 2, 3]),
        ("**1, 2, 3**.", [1, 2, 3]),
        ("**1, 2, 3.**", [1, 2, 3]),
        ("__1,2,3__", [1, 2, 3]),
        ("*1,2,3*", [1, 2, 3]),
        ("`1,2,3`", [1, 2, 3]),
        ('"1,2,3"', [1, 2, 3]),
        ("[1, 2, 3]", [1, 2, 3]),
        ("[1, 2, 3].", [1, 2, 3]),
        ("１，２，３", [1, 2, 3]),
        ("１、２、３。", [1, 2, 3]),
        ("1，2，3", [1, 2, 3]),
        ("```1,2,3```", [1, 2, 3]),
        ("```c++ title=x\n1,2,3\n```", [1, 2, 3]),
        ("```1,2,3\n```", [1, 2, 3]),
        ("~~~\n1,2,3\n~~~", [1, 2, 3]),
        ("````text\n1\n2\n3\n````", [1, 2, 3]),
        ("```\n**1, 2, 3**.\n```", [1, 2, 3]),
        ("<think>One of 3.\n\n9,9,9</think>\n\n1,2,3", [1, 2, 3]),
        ("<think></think>1,2,3", [1, 2, 3]),
        ("<THINKING>a</THINKING><think>b</think> 1,2,3", [1, 2, 3]),
        ("[THINK]a[/THINK]1,2,3", [1, 2, 3]),
        ("◁think▷a◁/think▷1,2,3", [1, 2, 3]),
        ("the opening tag was part of the prompt</think>\n1,2,3", [1, 2, 3]),
        ("<think>a</think>```\n1,2,3\n```", [1, 2, 3]),
        ("<think>a</think><answer>1,2,3</answer>", [1, 2, 3]),
        ("<seed:think>9,9,9</seed:think>1,2,3", [1, 2, 3]),
        ("(1, 2, 3)", [1, 2, 3]),
        ("\\boxed{1,2,3}", [1, 2, 3]),
        ("$1, 2, 3$", [1, 2, 3]),
        ("<|begin_of_box|>1,2,3<|end_of_box|>", [1, 2, 3]),
    ],
)
def test_numbers_and_nothing_else_are_an_answer_in_any_form_that_leaves_no_doubt(text: str, numbers: list[int]) -> None:
    assert parse_answer(text, 3) == numbers


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "The numbers are 1,2,3",
        "1,2,3..",
        "1,2,3 images",
        "1.0,2,3",
        "1,-2,3",
        "+1,2,3",
        "1;2;3",
        "1 2 3",
        "1,2,",
        ",1,2",
        "1,,3",
        "1,2,3\n1,2,3",
        "1,2\n3",
        "one,two,three",
        "1. 1\n2. 2\n3. 3",
        "١,٢,٣",
        "1,2,3```",
        "```\n1,2,3",
        "```\n1,2,3\n~~~",
        "```text 1,2,3```",
        "```text\n```",
        "**1,2,3",
        "[1,2,3",
        "(1), (2), (3)",
        "\\boxed{1},\\boxed{2},\\boxed{3}",
        "[1], [2], [3]",
        "1. 2. 3.",
        "1.\n2.\n3.",
        "- 1\n- 2\n- 3",
        "1.5",
        "1.5,2,3",
        "１．５，2，3",
        "①,②,③",
        "½,1,1",
        "1²,2,3",
        "1, 2 or 3",
        "1-3",
        "1/2/3",
        "−1,2,3",
        "–1,2,3",
        "1\t2\t3",
        "1,000",
        "12,345,678",
        "1 000, 2, 3",
        "1_0,2,3",
        "Answer: 1,2,3",
        "<think>1,2,3",
        "<think>a</think>b</think>1,2,3",
        "<think>a<think>b</think>c</think>1,2,3",
        "1,2,3</think>",
        "1,2,3<think>a</think>",
        "<think>a</think>",
        "1e1,2,3",
        "0x1,2,3",
        "9" * 5000,
        "1" + " " * 1_000_000 + "2",
    ],
)
def test_anything_else_is_malformed(text: str) -> None:
    assert reason(parse_answer, text, 3) is Missing.MALFORMED


def test_other_than_the_number_of_questions_is_no_answer() -> None:
    for text in ("1", "1,2", "1,2,3,4"):
        assert reason(parse_answer, text, 3) is Missing.WRONG_NUMBER


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "b": 2}',
        '{"b": 2, "a": 1}',
        ' {"a":1,"b":2}\n',
        '```json\n{"a": 1, "b": 2}\n```',
        '~~~\n{"a": 1, "b": 2}\n~~~',
        '<think>{"a": 3}</think>{"a": 1, "b": 2}',
    ],
)
def test_an_object_is_read_by_its_keys(text: str) -> None:
    assert parse_object(text, ("a", "b")) == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,2",
        "[1, 2]",
        "1",
        '{"a": 1, "b": 2',
        '{"a": 1, "b": "2"}',
        '{"a": 1, "b": 2.0}',
        '{"a": true, "b": 2}',
        '{"a": 1, "b": null}',
        '{"a": 1, "b": -2}',
        '{"a": 1, "b": 2, "a": 3}',
        '{"a": 1, "b": {"c": 2}}',
        'Here: {"a": 1, "b": 2}',
        "[" * 100_000,
    ],
)
def test_another_text_is_no_object_of_numbers(text: str) -> None:
    assert reason(parse_object, text, ("a", "b")) is Missing.MALFORMED


def test_an_object_of_other_keys_has_the_wrong_number_of_answers() -> None:
    for text in ("{}", '{"a": 1}', '{"a": 1, "b": 2, "c": 3}', '{"a": 1, "c": 2}'):
        assert reason(parse_object, text, ("a", "b")) is Missing.WRONG_NUMBER


# --- a whole reply

TASK = load_task("ucc")  # five questions
ASKED = Asked(TASK, 2, "numbers", ("max_tokens",))
USAGE = {"prompt_tokens": 100, "completion_tokens": 10}


def read(message: dict[str, Any], finish: str | None = "stop", **changes: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    body = {"choices": [choice | changes], "usage": USAGE}
    return read_reply(200, {}, json.dumps(body).encode(), ASKED)


@pytest.mark.parametrize(
    "message",
    [
        {"content": "0,1,2,1,2", "reasoning_content": "9,9,9,9,9"},
        {"content": "0,1,2,1,2", "reasoning": "9,9,9,9,9", "refusal": None},
        {"content": [{"type": "text", "text": "0,1,2,1,2"}]},
        {"content": [{"type": "thinking", "thinking": "9"}, {"type": "text", "text": "0,1,2,1,2"}]},
        {"content": [{"type": "reasoning", "text": "9"}, {"type": "output_text", "text": "0,1,2,1,2"}]},
        {"content": [{"type": "text", "text": "0,1,"}, {"type": "text", "text": "2,1,2"}]},
        {"content": [{"type": "text", "text": ""}, {"type": "text", "text": "0,1,2,1,2"}]},
    ],
)
def test_the_text_is_read_as_a_string_or_as_typed_parts_beside_reasoning(message: dict[str, Any]) -> None:
    assert read(message).counts == (0, 1, 2, 1, 2)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": None, "reasoning_content": "0,1,2,1,2"}, Missing.MALFORMED),
        ({"content": []}, Missing.MALFORMED),
        ({"content": [{"type": "thinking", "thinking": "0,1,2,1,2"}]}, Missing.MALFORMED),
        ({"content": [{"type": "image_url"}, {"type": "text", "text": "0,1,2,1,2"}]}, Missing.MALFORMED),
        # 1 and 1, or 11
        ({"content": [{"type": "text", "text": "0,1"}, {"type": "text", "text": "1,1,2,1"}]}, Missing.MALFORMED),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, Missing.REFUSAL),
        ({"content": 7}, Missing.MALFORMED),
    ],
)
def test_what_is_surely_no_whole_text_is_no_answer(message: dict[str, Any], reason: Missing) -> None:
    found = read(message)
    assert (found.missing, found.prompt_tokens, found.fault) == (reason, 100, None)


@pytest.mark.parametrize(
    ("finish", "native", "reason"),
    [
        ("content_filter", None, Missing.CONTENT_FILTER),
        ("SAFETY", None, Missing.CONTENT_FILTER),
        ("sensitive", None, Missing.CONTENT_FILTER),
        ("stop", "PROHIBITED_CONTENT", Missing.CONTENT_FILTER),
        ("length", None, Missing.CUT),
        ("stop", "MAX_TOKENS", Missing.CUT),
        ("stop", "TOKEN_LIMIT", Missing.CUT),
        ("incomplete", None, Missing.CUT),
        ("max_completion_tokens", None, Missing.CUT),
        ("MODEL_ARMOR", None, Missing.CONTENT_FILTER),
        ("refusal", None, Missing.REFUSAL),
        ("cancelled", None, Missing.ERROR),
        ("stop_sequence", "eos_token", None),
        ("error", None, Missing.ERROR),  # with a usage: it was charged
        ("stop", "STOP", None),
        (None, None, None),
    ],
)
def test_why_the_model_stopped_is_read_in_the_protocols_and_in_the_models_words(
    finish: str | None, native: str | None, reason: Missing | None
) -> None:
    found = read({"content": "0,1,2,1,2"}, finish, native_finish_reason=native)
    assert (found.missing, found.prompt_tokens, found.completion_tokens) == (reason, 100, 10)


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("content_filter", Missing.CONTENT_FILTER), ("length", Missing.CUT), ("stop", Missing.EMPTY)],
)
def test_a_choice_without_a_message_is_missing_for_the_reason_that_it_tells(finish: str, reason: Missing) -> None:
    body = {"choices": [{"finish_reason": finish}], "usage": USAGE}
    assert read_reply(200, {}, json.dumps(body).encode(), ASKED).missing is reason


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 0, "completion_tokens": 0}, "many"])
def test_an_error_without_a_usage_was_not_charged_and_one_with_a_usage_is_a_paid_attempt(usage: Any) -> None:
    body: dict[str, Any] = {"error": {"code": 429, "message": "slow"}, "usage": usage}
    found = read_reply(200, {}, json.dumps(body).encode(), ASKED)
    assert (found.missing, found.billed) == (Missing.RATE_LIMITED, False)
    assert found.fault is not None
    paid = read_reply(200, {}, json.dumps(body | {"usage": {"prompt_tokens": 7}}).encode(), ASKED)
    assert (paid.missing, paid.prompt_tokens, paid.completion_tokens) == (Missing.ERROR, 7, 0)
    assert (paid.billed, paid.fault) == (True, None)
