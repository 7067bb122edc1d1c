"""Numbers are read or the answer is missing; nothing is picked out of prose."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from steps.annotate.ledger import Missing
from steps.annotate.reply import AnswerError, parse_answer, parse_object


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
    ],
)
def test_numbers_on_one_line_are_an_answer(text: str, numbers: list[int]) -> None:
    assert parse_answer(text, 3) == numbers


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "The numbers are 1,2,3",
        "1,2,3.",
        "1,2,3 images",
        "1.0,2,3",
        "1,-2,3",
        "+1,2,3",
        "1;2;3",
        "1 2 3",
        "1,2,",
        ",1,2",
        "1,,3",
        "1\n2\n3",
        "1,2,3\n1,2,3",
        "1,\n2,3",
        "one,two,three",
        "1. 1\n2. 2\n3. 3",
        "[1,2,3]",
        "١,٢,٣",
        "1，2，3",
        "1,2,3```",
        "```1,2,3```",
        "1e1,2,3",
        "0x1,2,3",
        "9" * 5000,
    ],
)
def test_anything_else_is_malformed(text: str) -> None:
    assert reason(parse_answer, text, 3) is Missing.MALFORMED


def test_other_than_the_number_of_questions_is_no_answer() -> None:
    for text in ("1", "1,2", "1,2,3,4"):
        assert reason(parse_answer, text, 3) is Missing.WRONG_NUMBER


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "b": 2}', '{"b": 2, "a": 1}', ' {"a":1,"b":2}\n', '```json\n{"a": 1, "b": 2}\n```'],
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
