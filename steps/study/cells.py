"""The cells of the study: one training each, and which tables each of them is in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel, ConfigDict

from model.errors import ConfigError
from model.settings import LabelMethod, Variant, answers_questions
from model.task import Task
from steps.study.settings import StudySettings, StudyTable

#: Where the process labels of the training posts come from: nowhere (a variant that reads none), the annotator, people;
#: or made up (see `steps.study.labels`), as "symmetric-80".
NONE, ANNOTATOR, PEOPLE = "none", "annotator", "people"
#: How a made-up annotator errs: any answer becomes another; a positive becomes a negative; no answer comes.
NOISE_KINDS = ("symmetric", "one-sided", "missing")


class Cell(BaseModel):
    """One training and its evaluation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Variant
    seed: int
    train_posts: int
    labels: str
    method: LabelMethod = "plain"
    #: The questions that are asked, in the task's order.
    questions: tuple[str, ...]

    def beside(self, seed: int) -> Cell:
        """The same with another seed."""
        return self.model_copy(update={"seed": seed})


def cells_of_tables(settings: StudySettings, task: Task) -> dict[StudyTable, list[Cell]]:
    """The cells of each table, every seed of one setting together. One cell may be in several tables.

    Raises:
        ConfigError: the task has no intermediate question, so there is nothing to study.
    """
    if not task.questions:
        raise ConfigError(
            f"task {task.name}: it has no intermediate question: process supervision has nothing to teach"
        )
    largest = settings.train_posts[-1]
    makers = {
        "variants": lambda: _variants(task, largest),
        "sizes": lambda: _sizes(settings, task),
        "questions": lambda: _questions(settings, task, largest),
        "noise": lambda: _noise(settings, task, largest),
        "methods": lambda: _methods(settings, task, largest),
    }
    return {
        table: [cell.beside(seed) for cell in makers[table]() for seed in settings.seeds] for table in settings.tables
    }


def cell_of(
    task: Task, variant: Variant, posts: int, labels: str, *, method: LabelMethod = "plain", without: str | None = None
) -> Cell:
    """A cell of seed 0 that asks all questions but `without`. A variant that answers none takes no labels."""
    if not answers_questions(variant):
        return Cell(variant=variant, seed=0, train_posts=posts, labels=NONE, questions=())
    asked = tuple(id_ for id_ in task.question_ids if id_ != without)
    return Cell(variant=variant, seed=0, train_posts=posts, labels=labels, method=method, questions=asked)


def only(cell: Cell, question: str) -> Cell:
    """The same cell with one question."""
    return cell.model_copy(update={"questions": (question,)})


def _variants(task: Task, posts: int) -> Iterator[Cell]:
    for variant in get_args(Variant):
        for labels in (PEOPLE, ANNOTATOR) if answers_questions(variant) else (NONE,):
            yield cell_of(task, variant, posts, labels)


def _sizes(settings: StudySettings, task: Task) -> Iterator[Cell]:
    for posts in reversed(settings.train_posts):  # the largest first: it shares most with the other tables
        yield cell_of(task, "vanilla", posts, NONE)
        for variant in dict.fromkeys(("agentps", settings.variant)):
            for labels in (ANNOTATOR, PEOPLE):
                yield cell_of(task, variant, posts, labels)


def _ends(settings: StudySettings, task: Task, posts: int) -> Iterator[Cell]:
    """What the others are compared with: no process labels, and people's."""
    yield cell_of(task, "vanilla", posts, NONE)
    yield cell_of(task, settings.variant, posts, PEOPLE)


def _questions(settings: StudySettings, task: Task, posts: int) -> Iterator[Cell]:
    yield from _ends(settings, task, posts)
    if len(task.questions) > 1:
        for id_ in task.question_ids:
            yield cell_of(task, settings.variant, posts, PEOPLE, without=id_)
        for id_ in task.question_ids:
            yield only(cell_of(task, settings.variant, posts, PEOPLE), id_)


def _noise(settings: StudySettings, task: Task, posts: int) -> Iterator[Cell]:
    yield from _ends(settings, task, posts)
    yield cell_of(task, settings.variant, posts, ANNOTATOR)
    for kind in NOISE_KINDS:
        for accuracy in settings.accuracies:
            yield cell_of(task, settings.variant, posts, f"{kind}-{round(100 * accuracy)}")


def _methods(settings: StudySettings, task: Task, posts: int) -> Iterator[Cell]:
    yield from _ends(settings, task, posts)
    yield cell_of(task, settings.variant, posts, ANNOTATOR)
    for method in settings.methods:
        yield cell_of(task, settings.variant, posts, ANNOTATOR, method=method)
