"""A join by post_id loses nothing without a word."""

from __future__ import annotations

import logging

import pandas as pd
import pytest

from model.errors import DataError
from steps.tables import NoMatchError, rows_of, tell_unmatched

TABLE = pd.DataFrame({"post_id": ["a", "b", "c"], "value": pd.array([1, None, 3], dtype="Int8")}, index=[7, 8, 9])


def test_rows_come_in_the_order_that_is_asked_for_as_often_as_that() -> None:
    found = rows_of(TABLE, ["c", "a", "c"], "labels")
    assert found["post_id"].tolist() == ["c", "a", "c"]
    assert found["value"].tolist() == [3, 1, 3]
    assert (found["value"].dtype, list(found.index)) == ("Int8", [0, 1, 2])
    assert rows_of(TABLE, [], "labels").empty


def test_a_post_without_a_row_is_an_error_that_names_it_and_not_the_last_row() -> None:
    with pytest.raises(DataError, match=r"labels: 2 of 3 posts have no row: 'x', 'y'"):
        rows_of(TABLE, ["x", "a", "y"], "labels")


def test_a_post_of_two_rows_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match="labels: posts with more than one row: 'b'"):
        rows_of(pd.concat([TABLE, TABLE.iloc[1:2]]), ["a"], "labels")


def test_what_matches_nothing_is_counted_and_an_error_where_that_is_all(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tell_unmatched(["a", "b"], ["a", "b", "c"], "labels", "the posts")
        tell_unmatched([], ["a"], "labels", "the posts")
        assert caplog.text == ""
        tell_unmatched(["a", "x", "y"], ["a"], "labels", "the posts")
    assert "labels: 2 of its 3 posts are left out, not among the posts: 'x', 'y'" in caplog.text
    with pytest.raises(
        NoMatchError, match="none of its 4 posts is among the posts: found 'w', 'x', 'y', …; known are 'a'"
    ):
        tell_unmatched(["w", "x", "y", "z"], ["a"], "labels", "the posts")
