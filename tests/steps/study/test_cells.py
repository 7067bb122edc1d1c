from __future__ import annotations

from typing import Any

import pytest

from model.errors import ConfigError
from model.task import load_task
from steps.study.cells import ANNOTATOR, NONE, PEOPLE, Cell, cells_of_tables
from steps.study.settings import StudySettings, load_study_settings
from tests.support.tiny import TASK

UCC = load_task("ucc")


def settings(**changes: Any) -> StudySettings:
    return load_study_settings({"study": {"seeds": [0, 1], "train_posts": [10, 20], **changes}}).study


def of_seed(cells: list[Cell], seed: int) -> list[Cell]:
    return [cell.beside(0) for cell in cells if cell.seed == seed]


def test_every_setting_of_every_table_has_every_seed() -> None:
    for cells in cells_of_tables(settings(), UCC).values():
        assert of_seed(cells, 0) == of_seed(cells, 1)
        assert len(cells) == 2 * len(of_seed(cells, 0)) == len(set(cells)), "and none twice"


def test_only_the_tables_asked_for_are_planned_in_their_order() -> None:
    assert list(cells_of_tables(settings(tables=["noise", "variants"]), UCC)) == ["noise", "variants"]


def test_a_variant_that_reads_no_process_labels_has_one_cell_whatever_their_source() -> None:
    planned = cells_of_tables(settings(), UCC)
    vanilla = {cell for cells in planned.values() for cell in cells if cell.variant == "vanilla" and cell.seed == 0}
    assert {(cell.train_posts, cell.labels, cell.questions) for cell in vanilla} == {(10, NONE, ()), (20, NONE, ())}
    assert all(vanilla & set(cells) for cells in planned.values()), "each table has it to compare with"


def test_the_largest_cells_of_the_sizes_are_those_of_the_variants() -> None:
    planned = cells_of_tables(settings(), UCC)
    assert {cell for cell in planned["sizes"] if cell.train_posts == 20} <= set(planned["variants"])


def test_each_question_is_left_out_once_and_asked_alone_once() -> None:
    asked = [cell.questions for cell in of_seed(cells_of_tables(settings(), UCC)["questions"], 0)]
    ids = UCC.question_ids
    expected = [(), ids, *(tuple(q for q in ids if q != id_) for id_ in ids), *((id_,) for id_ in ids)]
    assert asked == expected


def test_noise_has_each_kind_at_each_accuracy_beside_people_and_the_annotator() -> None:
    labels = [cell.labels for cell in of_seed(cells_of_tables(settings(accuracies=[0.9, 0.55]), UCC)["noise"], 0)]
    made_up = ["symmetric-90", "symmetric-55", "one-sided-90", "one-sided-55", "missing-90", "missing-55"]
    assert labels == [NONE, PEOPLE, ANNOTATOR, *made_up]


def test_a_task_without_questions_is_nothing_to_study() -> None:
    with pytest.raises(ConfigError, match="task small: it has no intermediate question"):
        cells_of_tables(settings(), TASK.model_copy(update={"questions": ()}))
