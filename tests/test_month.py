"""The simulated month: its people, and the section that is written from its record."""

from __future__ import annotations

from benchmarks.month import Person, rows_of, section


def test_a_simulated_person_errs_as_often_as_said_and_the_same_way_each_time() -> None:
    questions = ("", "watermark", "ugc", "title_relevant", "text_relevant", "theme_relevant")
    truth = {str(n): dict.fromkeys(questions, 1) for n in range(500)}
    ann, expert = (Person("http://x", "ann", truth, error) for error in (0.1, 0.0))
    said = [ann.says(str(n)) for n in range(500)]
    assert said == [ann.says(str(n)) for n in range(500)]
    wrong = sum(one[""] == 0 for one in said)
    assert 28 <= wrong <= 75, "50 ± 3.4 standard deviations"
    assert expert.says("0") == truth["0"]


def test_the_cells_of_a_pages_tables_are_read() -> None:
    page = "<table><tr><th>a</th></tr><tr><td>1 &lt; <bdi>2</bdi></td><td></td></tr></table>"
    assert rows_of(page) == [["a"], ["1 < 2", ""]]


def test_the_section_tells_each_week_and_marks_an_interval_that_misses_the_truth() -> None:
    week = {
        "week": 1,
        "labelled": "35 of 43",
        "precision": {"value": 0.8, "low": 0.7, "high": 0.9, "truth": [17, 20]},
        "recall": {"value": None, "low": 0.0, "high": 0.3, "truth": [17, 34]},
    }
    record = {
        "minutes": 30.4, "posts_a_day": 12, "share": 0.5, "error": 0.04, "changed": 2, "weeks": [week], "reviews": 49,
        "runs": [{"week": 0}, {"week": 1, "served": "1", "decision": "kept: no gain"}], "kinds": {"first": 43},
        "reviewers": {"ann": "4 of 5"}, "kappa": "0.9", "asked": 60, "asked_reviewed": 24, "wrong": [],
    }  # fmt: skip
    text = section(record)
    row = "| 1 | 1 | 35 of 43 | 80.0% [70.0%, 90.0%]; 85.0% | – [0.0%, 30.0%]; 50.0% (outside) | kept: no gain |"
    assert row in text.splitlines()
    assert "none differed" in text
    assert "2 differed" in section(record | {"wrong": ["a", "b"]})
