from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from model.columns import ERROR, LOGIT, SCORE
from model.data import FRAMES, TEXT_IDS
from model.errors import TaskError
from model.schema import ROOT
from model.strict import explain_validation
from model.task import Question, Task, load_task, task_differences
from steps.annotate.disagreement import DISPUTED
from steps.retrain.profile import CHARACTERS, FEATURES, N_IMAGES

TASK: dict[str, Any] = {
    "name": "pets",
    "version": 1,
    "questions": [
        {"id": "animal", "ask": "Any animal?", "annotate": "Count images with animals.", "rule": "count >= 2"},
        {
            "id": "mood",
            "ask": "Mood?",
            "annotate": "Count happy images.",
            "classes": ["none", "some", "most"],
            "rule": {"some": "count >= 1", "most": "share >= 0.5"},
        },
        {
            "id": "place",
            "ask": "Where?",
            "annotate": "Say 0 for home, 1 for park, 2 for zoo.",
            "classes": ["home", "park", "zoo"],
            "positive": "park",
            "answer": "class",
        },
    ],
    "final": {"ask": "Publish?", "classes": ["no", "yes"], "positive": "yes"},
}


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return path


ABSENT = object()


def changed(*keys: str | int, to: Any) -> dict[str, Any]:
    """TASK with the value at `keys` replaced, added, or taken out."""
    task = deepcopy(TASK)
    inner: Any = task
    for key in keys[:-1]:
        inner = inner[key]
    if to is ABSENT:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = to
    return task


def task_of(**changes: Any) -> Task:
    return Task.model_validate({**deepcopy(TASK), **changes})


def test_a_task_loads_by_path_and_keeps_the_order_of_its_questions(tmp_path: Path) -> None:
    assert load_task(write(tmp_path / "pets.yaml", TASK)).question_ids == ("animal", "mood", "place")


def test_the_shipped_task_asks_the_papers_five_questions() -> None:
    task = load_task("ucc")
    assert task.question_ids == ("watermark", "ugc", "title_relevant", "text_relevant", "theme_relevant")


def test_a_task_may_have_no_intermediate_question() -> None:
    assert task_of(questions=[]).question_ids == ()


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (changed("colour", to="red"), "colour: unknown key"),
        (changed("questions", 0, "weigth", to=2), "questions.0.weigth: unknown key"),
        (changed("final", "threshold", to=0.5), "final.threshold: unknown key"),
        (changed("final", to=ABSENT), "final: is missing"),
        (changed("questions", 0, "ask", to=ABSENT), "questions.0.ask: is missing"),
        (changed("version", to=0), "version:"),
        (changed("name", to="My pets"), "'My pets' is no name"),
        (changed("questions", 0, "ask", to="  "), "questions.0.ask: the wording is empty"),
        (changed("questions", 1, "id", to="animal"), "question id 'animal' is used twice"),
        (changed("questions", 0, "id", to="label"), "'label' is the name of another column"),
        (changed("questions", 0, "id", to="image_sha256"), "'image_sha256' is the name of another column"),
        (changed("questions", 0, "id", to="Animal?"), "'Animal?' is no id"),
        (changed("questions", 0, "weight", to=-1), "questions.0.weight:"),
        (changed("questions", 0, "classes", to=["yes"]), "two or more distinct names"),
        (changed("questions", 0, "classes", to=["yes", "yes"]), "two or more distinct names"),
        (changed("questions", 0, "positive", to="maybe"), "positive 'maybe' is not one of the classes"),
        (changed("questions", 0, "rule", to="count > 1"), "rule 'count > 1': write `count >= NUMBER`"),
        (changed("questions", 0, "rule", to="mean >= 1"), "rule 'mean >= 1'"),
        (changed("questions", 0, "rule", to=ABSENT), "`answer: count` needs a rule"),
        (changed("questions", 1, "rule", to="count >= 1"), "3 classes need a rule for each class after the first"),
        (changed("questions", 1, "rule", to={"some": "count >= 1"}), "rule names ['some']"),
        (changed("questions", 2, "rule", to="count >= 1"), "`answer: class` takes none"),
        (changed("final", "classes", to=["yes", "no"]), "list 'yes' second"),
        (changed("final", "classes", to=["yes", "yes"]), "two names, one of them positive"),
        (changed("final", "classes", to=["a", "b", "c"]), "final.classes"),
    ],
)
def test_a_broken_task_names_the_file_and_the_key(tmp_path: Path, task: dict[str, Any], expected: str) -> None:
    path = write(tmp_path / "broken.yaml", task)
    with pytest.raises(TaskError) as error:
        load_task(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("name: [", "cannot be read as YAML"), ("- a\n- b", "found list"), ("", "found NoneType")],
)
def test_a_file_that_holds_no_mapping_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    with pytest.raises(TaskError, match=expected):
        load_task(write(tmp_path / "task.yaml", content))


def test_a_missing_task_names_the_path_and_the_shipped_ones() -> None:
    with pytest.raises(TaskError, match=r"task dogs: no file .*dogs\.yaml.*ucc"):
        load_task("dogs")


@pytest.mark.parametrize(
    ("rule", "answer", "n_images", "expected"),
    [
        ("count >= 2", 1, 4, 0),
        ("count >= 2", 2, 4, 1),
        ("share >= 0.5", 1, 3, 0),  # 0.33
        ("share >= 0.5", 2, 4, 1),  # exactly half
        ("share >= 0.8", 3, 4, 0),  # 0.75
        ("share >= 0.8", 4, 5, 1),  # exactly 0.8
        ("share >= 1", 3, 3, 1),
        ("count >= 0", 0, 3, 1),
    ],
)
def test_a_rule_makes_a_class_of_a_count(rule: str, answer: int, n_images: int, expected: int) -> None:
    question = Question(id="q", ask="Q?", annotate="Count.", rule=rule)
    assert question.class_of(answer, n_images) == expected


@pytest.mark.parametrize(
    ("answer", "n_images", "expected"),
    [
        (0, 4, 0),  # no rule holds: the first class
        (1, 4, 1),  # one image, a quarter
        (2, 4, 2),  # half: both rules hold, the later class is taken
        (1, 2, 2),
        (1, 1, 2),
    ],
)
def test_of_three_classes_the_last_whose_rule_holds_is_taken(answer: int, n_images: int, expected: int) -> None:
    assert task_of().questions[1].class_of(answer, n_images) == expected


def test_three_class_rules_are_read_in_the_order_of_the_classes_not_of_the_file() -> None:
    turned = changed("questions", 1, "rule", to={"most": "share >= 0.5", "some": "count >= 1"})
    assert Task.model_validate(turned).questions[1].class_of(2, 4) == 2


def test_an_answer_that_is_a_class_needs_no_rule() -> None:
    place = task_of().questions[2]
    assert [place.class_of(answer, 1) for answer in (0, 1, 2)] == [0, 1, 2]


@pytest.mark.parametrize(("question", "answer"), [(0, -1), (0, 4), (2, 3), (2, -1)])
def test_an_answer_outside_its_range_is_an_error(question: int, answer: int) -> None:
    with pytest.raises(ValueError, match=task_of().questions[question].id):
        task_of().questions[question].class_of(answer, n_images=3)


def test_the_positive_class_is_the_last_unless_named() -> None:
    assert [question.positive_index for question in task_of().questions] == [1, 2, 1]


@pytest.mark.parametrize(
    "other",
    [
        changed("questions", 0, "ask", to="Any pet?"),
        changed("questions", 0, "annotate", to="Count images with pets."),
        changed("questions", 0, "rule", to="count >= 1"),
        changed("final", "ask", to="Show it?"),
        changed("version", to=2),
        {**TASK, "questions": TASK["questions"][::-1]},
    ],
)
def test_the_fingerprint_changes_with_wording_rule_order_and_version(other: dict[str, Any]) -> None:
    assert Task.model_validate(other).fingerprint != task_of().fingerprint


def test_the_differences_of_two_tasks_name_key_and_both_values() -> None:
    other = changed("questions", 1, "rule", "most", to="share >= 0.6") | {"version": 2}
    assert task_differences(Task.model_validate(other), task_of()) == [
        "version: 2, expected 1",
        "questions.mood.rule.most: 'share >= 0.6', expected 'share >= 0.5'",
    ]
    assert task_differences(task_of(), task_of()) == []


def test_a_question_that_was_removed_is_no_difference_of_the_others() -> None:
    found = task_differences(Task.model_validate(changed("questions", 0, to=ABSENT)), task_of())
    assert found[0] == "questions.order: ['mood', 'place'], expected ['animal', 'mood', 'place']"
    assert not [line for line in found if line.startswith(("questions.mood", "questions.place"))]
    assert "questions.animal.ask: 'absent', expected 'Any animal?'" in found


def test_the_fingerprint_is_that_of_the_content_not_of_the_file(tmp_path: Path) -> None:
    turned = dict(reversed(TASK.items()))
    spelled_out = changed("questions", 0, "weight", to=1.0)  # the default
    assert load_task(write(tmp_path / "a.yaml", turned)).fingerprint == task_of().fingerprint
    assert Task.model_validate(spelled_out).fingerprint == task_of().fingerprint


@pytest.mark.parametrize(
    "other",
    [
        changed("questions", 0, "rule", to="count >= 1"),
        changed("questions", 0, "ask", to="Any pet?"),
        changed("questions", 0, "weight", to=3),
        changed("final", "ask", to="Show it?"),
    ],
)
def test_answers_already_paid_for_outlive_a_change_that_the_annotator_does_not_read(other: dict[str, Any]) -> None:
    assert Task.model_validate(other).annotation_fingerprint == task_of().annotation_fingerprint


@pytest.mark.parametrize(
    "other",
    [
        changed("questions", 0, "annotate", to="Count images with pets."),
        changed("questions", 2, "classes", to=["home", "park", "farm"]),
        {**TASK, "questions": TASK["questions"][:2]},
    ],
)
def test_the_annotation_fingerprint_changes_with_what_the_annotator_reads(other: dict[str, Any]) -> None:
    assert Task.model_validate(other).annotation_fingerprint != task_of().annotation_fingerprint


def with_question(**changes: Any) -> dict[str, Any]:
    return TASK | {"questions": [TASK["questions"][0] | changes]}


@pytest.mark.parametrize(
    "id_",
    [FRAMES, TEXT_IDS, LOGIT, SCORE, ERROR, CHARACTERS, N_IMAGES, FEATURES, DISPUTED, ROOT, "answer_animal",
     "probability_animal", "decision_p80", "post", "album", "said"],
)  # fmt: skip
def test_a_question_may_not_take_the_place_of_another_column(id_: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=rf"questions\.0\.id: '{id_}' .*: rename the question"):
        load_task(write(tmp_path / "task.yaml", with_question(id=id_)))


@pytest.mark.parametrize("classes", [["1", "2"], ["0", "2"], ["no", " yes"], ["no", ""]])
def test_a_cell_means_one_class(classes: list[str], tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"questions\.0: class '"):
        load_task(write(tmp_path / "task.yaml", with_question(classes=classes)))
    load_task(write(tmp_path / "task.yaml", with_question(classes=["0", "1"])))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ask", "a\0b", "ask: a NUL character"),
        ("annotate", "\ud800?", "annotate: .* half of a surrogate pair"),
        ("weight", float("inf"), "weight: not finite"),
        ("weight", True, "weight: true or false is not expected"),
        ("classes", ["no", True], "classes: true or false is not expected"),
    ],
)
def test_what_is_no_text_or_no_number_is_refused(key: str, value: object, message: str) -> None:
    raw = load_task("ucc").model_dump()
    raw["questions"][0][key] = value
    with pytest.raises(ValidationError) as refused:
        Task.model_validate(raw)
    assert re.search(rf"questions\.0\.{message}", explain_validation(refused.value))
