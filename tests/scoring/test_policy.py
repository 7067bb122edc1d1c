"""The policy: its order, its expressions without Python's eval, its draw, and what is wrong with a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.errors import ConfigError
from model.task import Task, load_task
from scoring.policy import Policy
from scoring.record import Answer, Record
from scoring.store import Store
from tests.scoring.test_record import WHO

ASKED = {"ask": "?", "annotate": "?", "rule": "count >= 1"}
TASK = Task.model_validate(
    {
        "name": "demo",
        "version": 1,
        "questions": [
            {"id": "watermark", **ASKED},
            {"id": "ugc", **ASKED, "classes": ["own", "no"], "positive": "own"},
            {"id": "kind", "ask": "?", "annotate": "?", "answer": "class", "classes": ["photo", "all drawn", "mixed"]},
        ],
        "final": {"ask": "?", "classes": ["good", "spam"], "positive": "spam"},
    }
)  # fmt: skip
BASE: dict[str, Any] = {"name": "spam", "version": 3, "task": "task.yaml", "precision": 80}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK.model_dump(mode="json")))

    def write(**changes: Any) -> Path:
        path = tmp_path / "policy.yaml"
        path.write_text(yaml.safe_dump(BASE | changes))
        return path

    return write


def record(score: float = 0.5, watermark: str = "no", ugc: str = "own", kind: str = "photo", **more: Any) -> Record:
    answers = {"watermark": watermark, "ugc": ugc, "kind": kind}
    said: dict[str, Any] = {
        "score": score,
        "decisions": {"p60": score >= 0.4, "p80": score >= 0.7},
        "answers": {name: Answer(answer=answer, probability=0.9) for name, answer in answers.items()},
    }
    return Record(**WHO | said | more)


def failed(reason: str = "image 1: no such file") -> Record:
    return Record(**WHO, error=reason)


# --- expressions


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ("watermark", {"watermark": "yes"}),
        ("not watermark", {"watermark": "no"}),
        ("ugc", {"ugc": "own"}),  # whose positive class is the first
        ("watermark and not ugc", {"watermark": "yes", "ugc": "no"}),
        ("watermark or kind == mixed", {"kind": "mixed"}),
        ("kind == 'all drawn'", {"kind": "all drawn"}),
        ("kind != photo", {"kind": "mixed"}),
        ("kind in (mixed, 'all drawn')", {"kind": "all drawn"}),
        ("kind not in [photo]", {"kind": "mixed"}),
        ("score >= 0.75", {"score": 0.75}),
        ("score > 0.75", {"score": 0.7500001}),
        ("0.2 <= score < 0.3", {"score": 0.2}),
        ("1 > score > .99", {"score": 0.995}),
        ("p80", {"score": 0.7}),
        ("p60 and not p80 and\n  (watermark or not ugc)", {"score": 0.6, "ugc": "no"}),
    ],
)
def test_an_expression_holds_where_it_reads_so(write: Any, when: str, holds: dict[str, Any]) -> None:
    policy = Policy.load(write(precision=None, rules=[{"name": "r", "when": when, "action": "flag"}]))
    assert policy.decide(record(**holds)).action == "flag"
    other = {"watermark": "no" if holds.get("watermark") == "yes" else "yes", "ugc": "no", "kind": "photo"}
    other["score"] = 0.0  # type: ignore[assignment]
    if when not in ("not watermark", "watermark"):
        other["watermark"] = "no"
    assert policy.decide(record(**other)).action == "pass"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("watermark and", "is no expression"),
        ("nsfw", r"`nsfw` is neither score nor a question of the task \(watermark, ugc, kind\)"),
        ("kind == video", r"`video` is no class of kind; it has photo, 'all drawn', mixed"),
        ("kind", r"`kind` has the classes photo, 'all drawn', mixed: say which, for example `kind == CLASS`"),
        ("kind == None", "`None` is no class of kind"),
        ("kind in ()", "is not understood"),
        ("kind in photo", "is not understood"),
        ("kind < photo", "is not understood"),
        ("kind == photo == mixed", "is not understood"),
        ("photo == kind", "`photo` is neither score nor a question"),
        ("score", "`score` is a number: compare it"),
        ("score >= 80", "`80`: a score is compared with a number from 0 to 1"),
        ("score >= True", "a score is compared with a number from 0 to 1"),
        ("score == 0.5", "a score is compared by <, <=, > or >="),
        ("score >= watermark", "`watermark`: a score is compared with a number"),
        ("score > 1e999", "a number from 0 to 1"),
        ("True", "is not understood"),
        ("__import__('os').system('true')", "is not understood"),
        ("watermark.__class__", "is not understood"),
        ("(lambda: 1)()", "is not understood"),
        ("[w for w in (1,)]", "is not understood"),
        ("watermark if ugc else kind", "is not understood"),
        ("(w := 1)", "is not understood"),
        ("watermark & ugc", "is not understood"),
        ("f'{watermark}'", "is not understood"),
        ("await watermark", "is not understood"),
        ("watermark\0", "NUL"),
        ("(" * 450 + "watermark" + ")" * 450, "is no expression"),
        ("not " * 240 + "nsfw", "neither score nor a question"),
        ("watermark or " * 100 + "ugc", "an expression has 1,000 at most"),
        ("import os", "is no expression"),
        ("1" * 900, "is not understood|is no expression"),
    ],
)
def test_what_is_no_expression_is_told_at_load_with_its_rule(write: Any, when: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Policy.load(write(rules=[{"name": "mine", "when": when, "action": "flag"}]))
    assert "policy.yaml" in str(caught.value)
    assert "mine" in str(caught.value) or "rules.0.when" in str(caught.value)


# --- what happens to a post


RULES = [
    {"name": "stolen", "when": "watermark and not ugc", "action": "review"},
    {"name": "drawn", "when": "kind == 'all drawn'", "action": "pass"},
    {"name": "sure", "when": "watermark", "action": "flag"},
]


@pytest.mark.parametrize(
    ("given", "action", "reason"),
    [
        (record(), "pass", "p80"),
        (record(0.7), "flag", "p80"),
        (record(watermark="yes"), "flag", "rule sure"),
        (record(0.9, kind="all drawn"), "pass", "rule drawn"),
        (record(watermark="yes", ugc="no", kind="all drawn"), "review", "rule stolen"),
        (record(0.9, watermark="yes", post_id="ok"), "pass", "allowed by post_id"),
        (record(0.9, post_id="17"), "pass", "allowed by post_id"),
        (failed(), "error", "image 1: no such file"),
        (Record(**WHO | {"post_id": "ok"}, error="no"), "error", "no"),
    ],
)
def test_the_first_of_error_allowed_rule_and_target_decides(
    write: Any, given: Record, action: str, reason: str
) -> None:
    policy = Policy.load(write(rules=RULES, allow={"post_ids": ["ok", "17"]}))
    found = policy.decide(given)
    assert (found.action, found.reasons, found.policy_version) == (action, (reason,), policy.version)


def test_an_allow_list_of_a_field_reads_that_of_the_message(write: Any) -> None:
    policy = Policy.load(write(allow={"fields": {"author": ["ann", "7"]}}))
    for author, action in (
        ("ann", "pass"),
        (7, "pass"),
        ("7", "pass"),
        ("bob", "flag"),
        (True, "flag"),
        (None, "flag"),
    ):
        assert policy.decide(record(0.9), {"author": author}).action == action
    assert policy.decide(record(0.9), {}).action == "flag"
    with pytest.raises(ConfigError, match=r"allow\.fields: posts have no author here"):
        policy.decide(record(0.9))


def test_without_a_target_the_rules_alone_decide(write: Any) -> None:
    policy = Policy.load(write(precision=None, rules=RULES))
    assert policy.decide(record(0.99)).reasons == ("no rule holds",)


# --- the draw


def test_the_share_that_is_drawn_is_that_which_is_written_down(write: Any) -> None:
    """Of 20,000 posts a share of 0.1 is 2,000, give or take 4 x sqrt(20,000 x 0.1 x 0.9) = 170."""
    policy = Policy.load(write(audit={"flag": 0.1, "pass": 0.25}))
    flagged = [policy.decide(record(0.9, post_id=f"p{k}")) for k in range(20_000)]
    assert abs(sum(found.audit for found in flagged) - 2_000) < 170
    assert {(found.action, found.audit_probability) for found in flagged} == {("flag", 0.1)}
    assert policy.decide(record(0.1)).audit_probability == 0.25
    assert policy.decide(failed()).audit_probability == 0
    assert [found.for_people for found in flagged] == [found.audit for found in flagged]


def test_the_draw_is_the_same_always_and_a_larger_share_has_the_smaller_one(write: Any) -> None:
    ids = [f"p{k}" for k in range(500)]

    def drawn(**audit: Any) -> set[str]:
        policy = Policy.load(write(audit=audit))
        return {post_id for post_id in ids if policy.decide(record(post_id=post_id)).audit}

    few = drawn(**{"pass": 0.1})
    assert few == drawn(**{"pass": 0.1}) != drawn(**{"pass": 0.1}, seed=1)
    assert few < drawn(**{"pass": 0.5}) < drawn(**{"pass": 1.0}) == set(ids)
    assert drawn() == set()


def test_whom_a_rule_sends_to_people_people_look_at_surely(write: Any) -> None:
    policy = Policy.load(write(rules=RULES, audit={"flag": 0.5, "pass": 0.5}))
    found = policy.decide(record(watermark="yes", ugc="no"))
    assert (found.audit, found.audit_probability, found.for_people) == (False, 1.0, True)


# --- the file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precison": 80}, r"precison: unknown key"),
        ({"precision": 100}, "precision: .*less than 100"),
        ({"precision": True}, "precision: true or false is not expected"),
        ({"precision": None}, "neither a precision target nor a rule"),
        ({"version": 0}, "version: "),
        ({"name": "My policy"}, "name: use a-z"),
        ({"task": "nothing"}, r"policy .*: task nothing: no file"),
        ({"allow": {"post_id": ["a"]}}, r"allow\.post_id: unknown key"),
        ({"allow": {"post_ids": [42]}}, r"allow\.post_ids\.0: .*string \(found 42\)"),
        ({"allow": {"fields": {"author": "ann"}}}, r"allow\.fields\.author"),
        ({"audit": {"share": 0.1}}, r"audit\.share: unknown key"),
        ({"audit": {"pass": 1.5}}, r"audit\.pass: "),
        ({"rules": [{"name": "a", "when": "watermark", "action": "delete"}]}, r"rules\.0\.action"),
        ({"rules": [{"name": "a", "action": "flag"}]}, r"rules\.0\.when: is missing"),
        ({"rules": [RULES[0], RULES[0]]}, "the name 'stolen' stands there twice"),
        ({"rules": "watermark"}, "rules: "),
    ],
)
def test_what_is_wrong_with_a_file_is_one_message_with_the_key(
    write: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Policy.load(write(**changes))
    assert "policy.yaml: " in str(caught.value)


@pytest.mark.parametrize("content", ["[1]", "a: [", "name: a\nname: b", "\ud800"])
def test_what_is_no_mapping_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=r"policy .*policy\.yaml: "):
        Policy.load(path)
    with pytest.raises(ConfigError, match="no such file"):
        Policy.load(tmp_path / "other.yaml")


def test_the_version_changes_with_what_is_decided_and_not_with_a_comment(write: Any) -> None:
    path = write(rules=RULES)
    first = Policy.load(path)
    path.write_text("# a comment\n" + path.read_text())
    assert Policy.load(path).version == first.version
    assert first.version.startswith("spam-3-")
    assert Policy.load(write(rules=RULES[:2])).version != first.version


# --- against a version, before anything is scored


def test_what_the_version_lacks_is_told_before_anything_is_scored(write: Any) -> None:
    policy = Policy.load(write(rules=[{"name": "r", "when": "p95 or watermark", "action": "flag"}]))
    policy.check(TASK, ["p80", "p95"])
    with pytest.raises(ConfigError, match=r"no threshold for p80, p95 \(it has p60\)"):
        policy.check(TASK, ["p60"])
    with pytest.raises(ConfigError, match="the version does not answer it"):
        policy.check(load_task("ucc").model_copy(update={"questions": ()}), ["p80", "p95"])
    with pytest.raises(ConfigError, match="the version does not answer it"):
        policy.check(TASK, ["p80", "p95"], "vanilla")
    swapped = [q.model_copy(update={"positive": "no"}) for q in TASK.questions]
    with pytest.raises(ConfigError, match=r"question watermark of its task task\.yaml has the classes no, yes"):
        policy.check(TASK.model_copy(update={"questions": tuple(swapped)}), ["p80", "p95"])


def test_a_record_that_lacks_what_the_policy_asks_for_is_told(write: Any) -> None:
    policy = Policy.load(write(rules=[{"name": "r", "when": "watermark", "action": "flag"}]))
    with pytest.raises(ConfigError, match="says nothing of 'watermark', which the policy asks for"):
        policy.decide(record(answers={}))
    with pytest.raises(ConfigError, match="says nothing of 'p80'"):
        policy.decide(record(decisions={"p60": True}))


# --- the page


def test_the_policy_of_the_page_loads_and_its_code_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(yaml|python)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL))
    (tmp_path / "policy.yaml").write_text(blocks["yaml"])
    policy = Policy.load(tmp_path / "policy.yaml")
    policy.check(load_task("ucc"), ["p80", "p90"])
    url = f"sqlite:///{tmp_path}/scores.db"
    with Store.open(url) as store:
        one = record(
            post_id="post-1", model_name="agentps-ucc", model_version="3", decisions={"p80": True, "p90": False}
        )
        store.put([(one, policy.decide(one, {}))])
    exec(blocks["python"], {"url": url})
