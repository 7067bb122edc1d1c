from __future__ import annotations

import hashlib
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from model.errors import ManifestError
from scoring.policy import Policy
from scoring.record import Record
from scoring.store import Store
from steps.retrain.fresh import read_labels
from steps.retrain.live import Live, Share, live, read_score_table, tell
from steps.settings import NotifySettings, load_settings
from steps.tables import NoMatchError


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scored(post_id: str, decision: bool, version: str = "2", at: str = "2026-03-01T00:00:00Z") -> dict[str, Any]:
    return {"post_id": post_id, "score": 0.5, "decision": decision, "model_version": version, "scored_at": at}


@pytest.mark.parametrize(("k", "n", "high"), [(0, 10, 1 - 0.05 ** (1 / 10)), (9, 10, 0.95 ** (1 / 10))])
def test_the_upper_bound_is_exact(k: int, n: int, high: float) -> None:
    """k = 0: (1 - p)^n = 0.05. k = n - 1: 1 - p^n = 0.05."""
    assert Share(k, n).upper(0.95) == pytest.approx(high, abs=1e-9)


def found(k: int, n: int) -> Live:
    return Live(version="1", scored=n, labelled=n, precision=Share(k, n), recall=Share(k, n), target=0.8)


def test_the_alarm_needs_95_percent_confidence() -> None:
    # P(X <= 11 | 20, 0.8) = 0.0100, P(X <= 12) = 0.0321, P(X <= 13) = 0.0867
    assert [found(k, 20).alarm for k in (11, 12, 13, 16)] == [True, True, False, False]
    assert not found(0, 0).alarm, "nothing flagged, nothing known"


def test_a_model_that_flags_nothing_of_what_people_find_is_told_of() -> None:
    one = Live(version="1", scored=9, labelled=9, precision=Share(0, 0), recall=Share(0, 3), target=0.8)
    assert one.alarm
    assert one.line == (
        "version 1: 9 of 9 scored posts are labelled; NOTHING is flagged at the target of 80%; "
        "live recall 0.0% (0 of 3)"
    )


def test_figures_are_the_versions_own_on_labelled_posts(tmp_path: Path) -> None:
    rows = [scored(f"p{n}", decision=n < 4) for n in range(8)]
    rows += [scored("p0", decision=False, version="1"), scored("p9", decision=True)]
    # scored again later: that is what was served last
    rows += [scored("p3", decision=False, at="2026-03-02T00:00:00Z")]
    labels = [{"post_id": f"p{n}", "label": int(n in (0, 1, 5))} for n in (*range(7), 10)]
    # too long before the newest
    rows += [scored("p10", decision=True, at="2026-02-15T00:00:00Z")]
    settings = load_settings({"retrain": {"live_days": 14, "live_precision": 80}}).retrain
    one = live(str(write(tmp_path / "s.jsonl", rows)), write(tmp_path / "l.jsonl", labels), "m", "2", settings, 0.95)
    assert (one.scored, one.labelled) == (9, 7)
    assert (one.precision, one.recall) == (Share(2, 3), Share(2, 3))
    assert "live precision 66.7% (2 of 3), at most 98.3% with 95% confidence: not shown to be below" in one.line


def test_a_table_that_lacks_what_is_needed_is_named(tmp_path: Path) -> None:
    bad = scored("p", decision=True) | {"decision": 1}
    with pytest.raises(ManifestError, match=r"s\.jsonl:1: decision: 1; true or false is expected"):
        read_score_table(write(tmp_path / "s.jsonl", [bad]))
    with pytest.raises(ManifestError, match="no column 'scored_at'"):
        read_score_table(write(tmp_path / "s.jsonl", [{k: v for k, v in bad.items() if k != "scored_at"}]))


def test_a_person_is_told_in_one_line(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    code = f"import sys; open({str(inbox)!r}, 'w').write(sys.stdin.read())"
    assert tell("model", found(5, 20), NotifySettings(webhook=None, command=f'{sys.executable} -c "{code}"')) == []
    text = inbox.read_text(encoding="utf-8")
    assert text.count("\n") == 1
    assert "model version 1: " in text
    assert "BELOW the target of 80%" in text


def test_late_labels_by_number_reach_the_posts_that_were_scored_and_none_at_all_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Labels that silently matched nothing kept the alarm from ever coming."""
    scores = write(tmp_path / "s.jsonl", [scored("1000", decision=True), scored("1001", decision=True)])
    labels = tmp_path / "l.jsonl"
    settings = load_settings({}).retrain
    write(labels, [{"post_id": 1000, "label": 0}, {"post_id": 1001, "label": None}, {"post_id": 7, "label": 1}])
    found = live(str(scores), labels, "m", "2", settings, 0.95)
    assert (found.labelled, found.precision) == (1, Share(0, 1))
    assert "1 of its 2 posts are left out, not among the scored posts of" in caplog.text
    write(labels, [{"post_id": "a-1000", "label": 0}])
    with pytest.raises(NoMatchError, match=r"l\.jsonl: none of its 1 posts is .* found 'a-1000'; known are '1000'"):
        live(str(scores), labels, "m", "2", settings, 0.95)
    write(labels, [{"post_id": 1000, "label": None}])
    assert live(str(scores), labels, "m", "2", settings, 0.95).labelled == 0
    write(labels, [{"id": 1000, "label": 0}])
    with pytest.raises(ManifestError, match=r"labels .*no column 'post_id' \(found id, label\)"):
        live(str(scores), labels, "m", "2", settings, 0.95)


def test_scores_and_labels_are_the_same_in_every_format_of_rows(tmp_path: Path) -> None:
    rows = [scored("1000", decision=True) | {"post_id": 1000, "model_version": 2}]
    scores, labels = pd.DataFrame(rows), pd.DataFrame({"post_id": [1000, 1001], "label": [1, None]})
    scores.to_parquet(tmp_path / "s.parquet")
    scores.to_csv(tmp_path / "s.csv", index=False)
    labels.to_parquet(tmp_path / "l.parquet")
    labels.to_csv(tmp_path / "l.csv", index=False)
    write(tmp_path / "s.jsonl", rows)
    write(tmp_path / "l.jsonl", [{"post_id": 1000, "label": 1}, {"post_id": 1001, "label": None}])
    expected = read_score_table(tmp_path / "s.jsonl")
    assert expected[["post_id", "decision", "model_version"]].to_numpy().tolist() == [["1000", True, "2"]]
    for suffix in ("parquet", "csv"):
        pd.testing.assert_frame_equal(read_score_table(tmp_path / f"s.{suffix}"), expected)
    assert [read_labels(tmp_path / f"l.{suffix}") for suffix in ("jsonl", "parquet", "csv")] == [{"1000": 1}] * 3


@pytest.mark.parametrize("age", [timedelta(0), timedelta(days=200)], ids=["new", "old"])
def test_a_wrong_clock_does_not_make_all_other_scores_old(
    age: timedelta, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it keep the last word on a post for ever, and so silence the alarm."""
    right = (datetime.now(UTC) - age).isoformat()
    rows = [scored(f"p{n}", decision=False, at="2999-01-01T00:00:00Z") for n in range(20)]
    rows += [scored(f"p{n}", decision=True, at=right) for n in range(20)]
    labels = [{"post_id": f"p{n}", "label": 0} for n in range(20)]
    settings = load_settings({"retrain": {"live_days": 14}}).retrain
    one = live(str(write(tmp_path / "s.jsonl", rows)), write(tmp_path / "l.jsonl", labels), "m", "2", settings, 0.95)
    assert (one.scored, one.labelled, one.precision) == (20, 20, Share(0, 20))
    assert one.alarm
    assert f"of 20 rows scored_at is still to come, so a clock was wrong: they are left out ({tmp_path}/s.jsonl:1" in (
        caplog.text
    )


def test_a_row_of_a_clock_that_is_minutes_ahead_counts_and_makes_no_other_old(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    rows = [scored(f"p{n}", decision=True, at=(now + timedelta(hours=n)).isoformat()) for n in (-23, 2)]
    labels = [{"post_id": f"p{n}", "label": 0} for n in (-23, 2)]
    settings = load_settings({"retrain": {"live_days": 1}}).retrain
    one = live(str(write(tmp_path / "s.jsonl", rows)), write(tmp_path / "l.jsonl", labels), "m", "2", settings, 0.95)
    assert one.labelled == 2


@pytest.mark.parametrize("score", ["nan", "inf", "1.5"])
def test_a_score_is_a_probability_in_every_format(score: str, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(f"post_id,score,decision,model_version,scored_at\np,{score},true,2,2026-03-01T00:00:00Z\n")
    with pytest.raises(ManifestError, match=rf"s\.csv:2: score: '{score}'; a number from 0 to 1 is expected"):
        read_score_table(path)


def drawn_store(place: Path, n_flagged: int, n_passed: int, audit: dict[str, float]) -> tuple[str, list[str]]:
    """Scores of version 2 with a policy's word on each; and the posts that it drew for people."""
    policy = place / "policy.yaml"
    policy.write_text(
        yaml.safe_dump({"name": "p", "version": 1, "task": "ucc", "precision": 80, "audit": audit}), encoding="utf-8"
    )
    of = Policy.load(policy)
    ids = [f"f{n}" for n in range(n_flagged)] + [f"p{n}" for n in range(n_passed)]
    records = [
        Record(
            post_id=post_id,
            score=0.9 if post_id[0] == "f" else 0.1,
            logit=0.0,
            decisions={"p80": post_id[0] == "f"},
            model_name="m",
            model_version="2",
            task=of.task.fingerprint,
            input_sha256=hashlib.sha256(post_id.encode()).hexdigest(),
            scored_at=datetime.now(UTC),
        )
        for post_id in ids
    ]
    outcomes = [of.decide(record) for record in records]
    url = f"sqlite:///{place}/scores.db"
    with Store.open(url) as store:
        store.put(list(zip(records, outcomes, strict=True)))
    return url, [record.post_id for record, outcome in zip(records, outcomes, strict=True) if outcome.audit]


def test_of_a_store_with_a_random_share_only_the_drawn_posts_tell_and_stand_for_all(tmp_path: Path) -> None:
    """People also label flagged posts whose authors complain: mostly wrong ones, which must ring no alarm."""
    url, drawn = drawn_store(tmp_path, 1000, 4000, {"flag": 0.2, "pass": 0.05})
    flagged = [post_id for post_id in drawn if post_id[0] == "f"]
    passed = [post_id for post_id in drawn if post_id[0] == "p"]
    labels = [{"post_id": post_id, "label": int(n % 10 < 8)} for n, post_id in enumerate(flagged)]
    labels += [{"post_id": post_id, "label": int(n % 20 == 0)} for n, post_id in enumerate(passed)]
    complaints = [f"f{n}" for n in range(1000) if f"f{n}" not in drawn]
    labels += [{"post_id": post_id, "label": 0} for post_id in complaints]
    settings = load_settings({}).retrain
    found = live(url, write(tmp_path / "l.jsonl", labels), "m", "2", settings, 0.95)
    right, missed = sum(n % 10 < 8 for n in range(len(flagged))), sum(n % 20 == 0 for n in range(len(passed)))
    positives = 1000 * right / len(flagged), 4000 * missed / len(passed)
    assert found.precision.value == pytest.approx(right / len(flagged))
    assert found.recall.value == pytest.approx(positives[0] / sum(positives))
    assert not found.alarm
    assert f"from {len(flagged):,} posts drawn for people" in found.line
    exact = Share(right, len(flagged)).upper(0.95)
    assert found.high == pytest.approx(exact, abs=3e-3)


def test_labels_of_a_queue_weigh_as_they_were_drawn(tmp_path: Path) -> None:
    """Of 40 flagged posts people were asked of 10 surely wrong ones in any case, and of each other with 1 in 3."""
    scores = write(tmp_path / "s.jsonl", [scored(f"p{n}", decision=True) for n in range(40)])
    rows = [{"post_id": f"p{n}", "label": 0, "inclusion_probability": 1.0} for n in range(10)]
    rows += [{"post_id": f"p{n}", "label": 1, "inclusion_probability": 1 / 3} for n in range(10, 20)]
    pd.DataFrame(rows).to_csv(tmp_path / "queue.csv", index=False)
    found = live(str(scores), tmp_path / "queue.csv", "m", "2", load_settings({}).retrain, 0.95)
    assert found.precision.value == pytest.approx(30 / 40)
    rows[0]["inclusion_probability"] = 0
    pd.DataFrame(rows).to_csv(tmp_path / "queue.csv", index=False)
    with pytest.raises(ManifestError, match=r"queue\.csv:2: inclusion_probability: .*a probability above 0"):
        live(str(scores), tmp_path / "queue.csv", "m", "2", load_settings({}).retrain, 0.95)


def test_the_alarm_has_the_configured_confidence() -> None:
    # P(X <= 12 | 20, 0.8) = 0.0321, P(X <= 13) = 0.0867
    def rings(k: int, confidence: float) -> bool:
        share = Share(k, 20)
        return Live("1", 20, 20, share, share, 0.8, confidence).alarm

    assert [rings(12, 0.95), rings(12, 0.97), rings(13, 0.91), rings(13, 0.92)] == [True, False, True, False]


def test_a_model_that_keeps_its_promise_alarms_in_at_most_5_of_100_weeks() -> None:
    rng = np.random.default_rng(0)
    weeks = [Share(int(k), 200) for k in rng.binomial(200, 0.8, 2000)]
    assert np.mean([Live("1", 200, 200, week, week, 0.8, 0.95).alarm for week in weeks]) <= 0.05
