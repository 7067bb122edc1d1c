"""Against a real MLflow on SQLite; crowds and kills in processes of their own (`tests.support.promoters`)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from model.errors import ConfigError, RegistryError
from steps.paths import REPOSITORY
from steps.promote.gate import Decision
from steps.register import history, moves, registry
from steps.register.moves import RegistryState
from steps.settings import load_settings
from tests.support.promoters import NAME, TARGET, add_version, promote

#: Days: now, long after it, and of a machine that has lost its clock.
NOW, FUTURE, LOST = 100, 20_000, -20_000
PROMOTERS = [sys.executable, "-m", "tests.support.promoters"]


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions here hold no files: what `fetch` refuses is the subject of test_registry.py."""
    monkeypatch.setattr(history, "fetch", lambda version: Path())


def promoters(empty_database: Path, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    database = folder / "mlflow.db"
    shutil.copy(empty_database, database)
    process = subprocess.run(
        [*PROMOTERS, arguments[0], str(database), *arguments[1:]],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]


def aliases() -> dict[str, str]:
    return {alias: str(v) for alias, v in MlflowClient().get_registered_model(NAME).aliases.items()}


def kinds() -> list[str]:
    return [entry.move.kind for entry in history.sync(NAME).entries]


def test_twenty_processes_that_promote_at_once_leave_one_champion_and_a_gap_free_history(
    empty_database: Path, tmp_path: Path
) -> None:
    (state,) = promoters(empty_database, tmp_path, "crowd", "20")
    assert state["numbers"] == list(range(1, len(state["numbers"]) + 1))
    assert state["done"]
    assert state["counts"], "every record counts"
    assert len(state["numbers"]) == 20, "each was promoted or kept once"
    # Version n has quality n - 1: each champion beat the one that it replaced, and the best of all is the last.
    champions = [int(version) for _, version in state["champions"]]
    assert champions == sorted(set(champions))
    assert champions[-1] == 20
    assert state["aliases"]["champion"] == state["decided"]["champion"] == "20"
    assert [expected for expected, _ in state["champions"]] == [None, *map(str, champions[:-1])]
    assert {int(v) for v, verdict in state["verdicts"].items() if verdict == "promoted"} == set(champions)
    assert len(state["verdicts"]) == 20


@pytest.mark.parametrize("name", ["first", "promotion"])
def test_killed_after_any_write_the_next_run_leaves_the_state_of_an_undisturbed_one(
    empty_database: Path, tmp_path: Path, name: str
) -> None:
    found = promoters(empty_database, tmp_path, "kill", name)
    assert len(found) >= 8, "a version, two moves of four or five writes each, and the copy"
    expected = {"champion": "1", "challenger": "1"} if name == "first" else {
        "champion": "2", "previous": "1", "challenger": "2"
    }  # fmt: skip
    for state in found:
        assert state["aliases"] == expected, state
        assert state["decided"] == expected, state
        assert state["done"], state
        assert state["numbers"] == list(range(1, len(state["numbers"]) + 1)), state
        assert state["kinds"] == ["registered", "promoted"] if name == "first" else [
            "promoted", "registered", "promoted"
        ], state  # fmt: skip
        assert set(state["verdicts"].values()) == {"promoted"}, state
        assert len(state["verdicts"]) == (1 if name == "first" else 2), state
        if name == "promotion":
            assert state["copies"] == [f"models:/{NAME}/1", f"models:/{NAME}/2"], state
            assert state["target"] == {
                "champion": "2", "previous": "1"
            }, state  # fmt: skip


def test_a_rollback_killed_after_any_write_is_whole_after_the_next_look(empty_database: Path, tmp_path: Path) -> None:
    found = promoters(empty_database, tmp_path, "kill", "rollback")
    assert len(found) >= 4, "the record, two aliases, the mark"
    for state in found:  # from the first write on it is decided
        assert state["aliases"] == {"champion": "1", "previous": "2"}, state
        assert state["decided"] == state["aliases"], state
        assert state["kinds"][-1] == "rollback"
        assert state["done"], state


def test_the_history_tells_who_was_champion_on_a_day(tracking: Path, whole: None) -> None:
    assert history.sync(NAME).champion is None, "an unknown model has none"
    before = datetime.now(UTC)
    promote(add_version(1))
    between = datetime.now(UTC)
    promote(add_version(2))
    state = history.sync(NAME)
    assert [state.on(moment) for moment in (before, between, datetime.now(UTC))] == [None, "1", "2"]
    assert state.champion_since is not None
    assert between < state.champion_since < datetime.now(UTC)


def test_a_version_that_is_kept_moves_nothing_and_is_told_why(tracking: Path) -> None:
    promote(add_version(2))
    worse = add_version(1)
    assert promote(worse).verdict == "kept"
    assert kinds() == ["promoted", "kept"]
    assert promote(worse).verdict == "kept"
    assert kinds() == ["promoted", "kept"], "the same verdict is written down once"
    assert registry.tags_of(worse)[history.VERDICT] == "kept"
    assert registry.tags_of(worse)[history.REASON] == "against 1"


def test_of_two_that_replace_the_same_champion_the_second_is_decided_again(tracking: Path) -> None:
    promote(add_version(1))
    better, best = add_version(2), add_version(3)
    asked: list[str | None] = []

    def decide(state: RegistryState) -> Decision:
        asked.append(state.aliases.get("champion"))
        if len(asked) == 1:
            promote(best)  # while this one is being decided
        return Decision(verdict="promoted" if state.aliases.get("champion") == "1" else "kept", reason="")

    assert history.settle(better, decide).verdict == "kept"
    assert asked == ["1", "3"]
    assert aliases()["champion"] == "3"


def test_rollback_goes_back_and_a_second_one_forward_again(tracking: Path, whole: None) -> None:
    promote(add_version(1))
    with pytest.raises(RegistryError, match="no alias `previous`"):
        history.rollback(NAME, "too early")
    promote(add_version(2))
    state = history.rollback(NAME, "it flags holidays")
    assert aliases() == {"champion": "1", "previous": "2"}
    move = state.rolled_back("2")
    assert move is not None
    assert move.reason == "it flags holidays"
    state = history.rollback(NAME, "it was the calendar")
    assert aliases() == {"champion": "2", "previous": "1"}
    assert state.rolled_back("2") is None


def test_a_champion_of_old_can_be_gone_back_to_whatever_the_gate_says_of_it_today(tracking: Path, whole: None) -> None:
    old = add_version(1)
    promote(old)
    promote(add_version(2))
    assert promote(old).verdict == "kept", "an unchanged rerun of the run that made it"
    assert history.rollback(NAME, "holidays").aliases == {"champion": "1", "previous": "2"}


def test_a_previous_that_never_passed_the_gate_is_not_gone_back_to(tracking: Path, whole: None) -> None:
    promote(add_version(2))
    promote(add_version(1))
    MlflowClient().set_registered_model_alias(NAME, "previous", "2")
    with pytest.raises(RegistryError, match="version 2, which was moved there by hand and never passed the gate"):
        history.rollback(NAME, "so")
    assert aliases()["champion"] == "1"


def test_only_what_the_gate_left_to_a_person_can_be_promoted_by_one(tracking: Path, whole: None) -> None:
    promote(add_version(5))
    kept, open_ = add_version(1), add_version(2)
    promote(kept)
    with pytest.raises(RegistryError, match=r"version 2: the gate said 'kept' \(against 1\)"):
        history.approve(kept, "I want it")
    with pytest.raises(RegistryError, match="the gate said 'nothing yet'"):
        history.approve(open_, "I want it")
    history.settle(open_, lambda _: Decision(verdict=history.NEEDS_A_PERSON, reason="a slice fell"))
    history.approve(open_, "the slice is gone from the product")
    tags = registry.tags_of(open_)
    assert tags[history.VERDICT] == "promoted"
    assert tags["agentps.because"] == "the slice is gone from the product"
    assert tags["agentps.approved_by"]
    assert abs((datetime.now(UTC) - datetime.fromisoformat(tags["agentps.approved_at"])).total_seconds()) < 60
    assert aliases() == {"champion": "3", "previous": "1"}
    assert kinds() == ["promoted", "kept", "needs a person", "by a person"]
    with pytest.raises(RegistryError, match="it is the champion already"):
        history.approve(open_, "again")


def test_a_verdict_that_is_put_into_a_tag_by_hand_is_none(tracking: Path, whole: None) -> None:
    promote(add_version(5))
    kept, new = add_version(1), add_version(2)
    promote(kept)
    for version, said in ((kept, "kept"), (new, "nothing yet")):
        registry.set_verdict(version, {history.VERDICT: history.NEEDS_A_PERSON, history.REASON: "let me"})
        with pytest.raises(RegistryError, match=f"the gate said '{said}'"):
            history.approve(version, "I want it")
    assert aliases() == {"champion": "1"}
    promote(kept)
    assert registry.tags_of(kept)[history.VERDICT] == "kept", "the tag shows the history again"


def record(tags: dict[str, str], source: str = "agentps-history:/record") -> None:
    MlflowClient().create_model_version(f"{NAME}.history", source, tags=tags)


def test_what_is_no_move_of_this_project_or_was_changed_is_left_out_of_the_history_and_told_once(
    tracking: Path, whole: None, caplog: pytest.LogCaptureFixture
) -> None:
    client = MlflowClient()
    promote(add_version(5))
    kept = add_version(1)
    promote(kept)
    content = client.get_model_version(f"{NAME}.history", "2").tags["agentps.move"]
    forged = content.replace('"kept"', '"needs a person"')
    assert forged != content
    client.set_model_version_tag(f"{NAME}.history", "2", "agentps.move", forged)
    record({})
    record({"agentps.move": "{"})
    record({"agentps.move": '{"kind": "promoted"}'})
    record({"agentps.move": content.replace("Z", "")})
    record({"agentps.move": forged}, "agentps-history:/record/0")
    for change in ({"tags": {"": "x"}}, {"sets": {"latest": "1"}}, {"sets": {"champion": "one"}}, {"judged": "1/.."}):
        odd = json.dumps(json.loads(content) | change | {"id": "odd"})
        record({"agentps.move": odd}, f"agentps-history:/record/{hashlib.sha256(odd.encode()).hexdigest()}")
    moves._tell_once.cache_clear()
    for _ in range(2):
        assert [entry.number for entry in history.sync(NAME).entries] == [1]
    (line,) = [line.message for line in caplog.records if line.name == "steps.register.moves"]
    assert line.startswith(
        f"the history {NAME}.history: left out: version 2, whose tag agentps.move was changed after it was written; "
        "version 3, which this project did not write (no tag agentps.move); version 4, whose tag agentps.move is no "
    )
    assert "; and 5 more: find out who may write" in line
    with pytest.raises(RegistryError, match="the gate said 'nothing yet'"):
        history.approve(kept, "the history says so")
    promote(kept)
    assert history.sync(NAME).verdict(kept.version) == ("kept", "against 1"), "the history goes on"


def test_a_history_of_before_records_had_hashes_and_ids_is_read(tracking: Path, whole: None) -> None:
    promote(add_version(1))
    for number in ("2", "3"):
        client = MlflowClient()
        move = json.loads(client.get_model_version(f"{NAME}.history", "1").tags["agentps.move"])
        for new in ("id", "judged"):
            del move[new]
        move["sets"], move["expects"] = {"champion": number}, {"champion": str(int(number) - 1)}
        record({"agentps.move": json.dumps(move), "agentps.done": "yes"})
        add_version(int(number))
    client.set_registered_model_alias(NAME, "champion", "3")
    state = history.sync(NAME)
    assert [entry.move.sets["champion"] for entry in state.entries] == ["1", "2", "3"]
    assert state.champion is not None


def test_two_commands_that_roll_back_at_once_go_back_once(tracking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(add_version(1))
    promote(add_version(2))

    def meanwhile(version: registry.RegisteredVersion) -> Path:
        monkeypatch.setattr(history, "fetch", lambda version: Path())
        history.rollback(NAME, "another terminal")
        return Path()

    monkeypatch.setattr(history, "fetch", meanwhile)
    with pytest.raises(RegistryError, match="another command moved `champion` or `previous` meanwhile"):
        history.rollback(NAME, "it flags holidays")
    assert aliases() == {"champion": "1", "previous": "2"}
    assert kinds() == ["promoted", "promoted", "rollback"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 2], [1, 2, 2]),
        ([1, FUTURE, 3], [1, 3, 3]),
        ([1, 2, FUTURE], [1, 2, NOW]),
        ([FUTURE, FUTURE], [NOW, NOW]),
        ([1, 9, 3, 4], [1, 3, 3, 4]),
        ([2, 3, 1, 4], [2, 3, 4, 4]),
        ([2, LOST], [2, NOW]),
        ([LOST, LOST, 3], [3, 3, 3]),
        ([], []),
    ],
    ids=str,
)
def test_a_record_whose_clock_was_wrong_has_the_time_of_the_next_one(said: list[int], expected: list[int]) -> None:
    """Days of 2026; the numbers of the records are their order."""

    def days(numbers: list[int]) -> list[datetime]:
        return [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number) for number in numbers]

    assert moves._times(days(said), *days([NOW])) == days(expected)


def test_a_champion_of_2099_is_neither_stale_nor_young_for_ever(tracking: Path) -> None:
    before = datetime.now(UTC)
    for number in (1, 2):
        add_version(number)
        sets: dict[str, str | None] = {"champion": str(number)}
        at = datetime(2099, 1, 1, tzinfo=UTC)
        assert history._make(NAME, history.Move(kind="promoted", at=at, by="gate", reason="", expects={}, sets=sets))
    state = history.sync(NAME)
    assert state.champion_since is not None
    assert before - timedelta(seconds=1) < state.champion_since <= datetime.now(UTC)
    assert state.on(datetime.now(UTC)) == "2"
    assert [entry.move.at.year for entry in state.entries] == [2099, 2099], "what was said is kept"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("it's", "a name of A-Z"), ("", "a name of A-Z"), ("a/b", "a name of A-Z"), ("a:b", "a name of A-Z"),
        ("a\nb", "a name of A-Z"), ("..", "a name of A-Z"), ("naïve", "a name of A-Z"), ("a%' or 1", "a name of A-Z"),
        ("champion", "name of an alias"), ("Latest", "name of an alias"), ("12", "or of a version"),
        ("v3", "or of a version"), ("x" * 201, "201 characters: 200 at most"), ("m.history", "of a model's history"),
        ("M.History", "of a model's history"),
    ],
)  # fmt: skip
def test_a_name_that_a_registered_model_cannot_have_is_refused_before_a_run(name: str, why: str) -> None:
    for section, key in (("register", "name"), ("promote", "target")):
        with pytest.raises(ConfigError, match=rf"{section}\.{key}.*{why}"):
            load_settings({section: {key: name}})
    assert load_settings({"register": {"name": "Team_1.agentps-ucc"}}).register_.name == "Team_1.agentps-ucc"


def test_a_target_that_is_the_model_itself_or_has_a_history_gets_no_copy(tracking: Path) -> None:
    promote(add_version(1))
    for target in (NAME, NAME.upper()):
        with pytest.raises(ConfigError, match=r"is the model itself: every run would copy its champion into it"):
            history.publish(NAME, target)
    MlflowClient().create_registered_model("other")
    MlflowClient().create_model_version("other", "test:/none")
    history.challenge(registry.get("other", "1"))
    with pytest.raises(RegistryError, match=r"a model that a pipeline registers versions of \(other\.history\)"):
        history.publish(NAME, "other")
    assert len(registry.versions_of(NAME)) == len(registry.versions_of("other")) == 1


def test_an_alias_moved_by_hand_is_noticed_and_written_down(tracking: Path) -> None:
    client = MlflowClient()
    promote(add_version(1))
    promote(add_version(2))
    promote(add_version(0))
    client.set_registered_model_alias(NAME, "champion", "3")
    state = history.sync(NAME)
    entry = state.entries[-1]
    assert (entry.move.kind, entry.move.sets) == ("by hand", {"champion": "3"})
    assert "the gate's verdict on this champion: kept" in entry.move.reason
    assert state.aliases == {"champion": "3", "previous": "1"}
    client.delete_registered_model_alias(NAME, "champion")
    assert history.sync(NAME).champion is None
    assert kinds() == ["promoted", "promoted", "kept", "by hand", "by hand"]
    assert kinds() == kinds(), "written down once"


def test_a_champion_that_is_deleted_by_hand_leaves_a_registry_that_works(tracking: Path) -> None:
    promote(add_version(1))
    MlflowClient().delete_model_version(NAME, "1")
    assert history.sync(NAME).champion is None
    promote(add_version(2))
    assert kinds() == ["promoted", "by hand", "promoted"]


def test_a_record_that_came_second_on_another_machine_changes_nothing(tracking: Path) -> None:
    promote(add_version(1))
    promote(add_version(2))
    late = history.Move(
        kind="promoted", at=datetime.now(UTC), by="gate", reason="", expects={"champion": "1"},
        sets={"champion": "3", "previous": "1"},
    )  # fmt: skip
    add_version(3)
    assert history._make(NAME, late) is False
    state = history.sync(NAME)
    assert [entry.counts for entry in state.entries] == [True, True, False]
    assert aliases() == {"champion": "2", "previous": "1"}


def test_every_champion_is_copied_once_into_the_registry_of_production(tracking: Path) -> None:
    client = MlflowClient()
    assert history.publish(NAME, TARGET) is None, "no champion, no copy"
    promote(add_version(1))
    assert history.publish(NAME, TARGET) == "1"
    assert history.publish(NAME, TARGET) == "1"
    promote(add_version(2))
    assert history.publish(NAME, TARGET) == "2"
    copies = client.search_model_versions(f"name = '{TARGET}'")
    assert {int(copy.version): copy.source for copy in copies} == {1: f"models:/{NAME}/1", 2: f"models:/{NAME}/2"}
    found = {alias: str(v) for alias, v in client.get_registered_model(TARGET).aliases.items()}
    assert found == {"champion": "2", "previous": "1"}
    assert client.get_model_version(TARGET, "2").tags["agentps.copy_of"] == f"{NAME}/2"
