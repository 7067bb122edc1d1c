"""A task: the policy as questions, their classes, and the rules that make a class of an answer.

A task file is YAML (`configs/tasks/*.yaml`). The intermediate questions are asked in order and the
final question last (paper 2.1). Unknown keys are errors, so that a typing mistake is never a
silently missing question.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from .columns import answer_column, decision_column, probability_column
from .errors import TaskError
from .schema import RESERVED
from .strict import Chosen, explain_validation
from .yaml_file import load_yaml

TASKS_DIR = Path(__file__).resolve().parent.parent / "configs" / "tasks"

_IDENTIFIER = re.compile(r"^[a-z][a-z0-9_]{0,47}$")
#: In a table of predictions `answer_price` is the answer to `price`: no question may have that name.
_RESERVED_STARTS = tuple(column("") for column in (answer_column, probability_column, decision_column))
_RULE = re.compile(r"^\s*(count|share)\s*>=\s*([0-9]+(?:\.[0-9]+)?)\s*$")


class Question(Chosen):
    """One intermediate question.

    `ask` is the short wording in the sequence that the model reads (paper: 60 tokens for all of
    them); `annotate` the long wording that the annotator reads (paper, Appendix B). `{title}` and
    `{text}` in it are replaced by the post's own.
    """

    id: str
    ask: str
    annotate: str
    classes: tuple[str, ...] = ("no", "yes")
    #: The class whose probability is "the answer" of a binary question. Default: the last.
    positive: str | None = None
    #: What the annotator returns: a number of images, from which `rule` makes a class, or the
    #: index of the class itself.
    answer: Literal["count", "class"] = "count"
    #: `count >= 1`, `share >= 0.5` for two classes; a mapping from each class after the first to
    #: its rule for more. The last class whose rule holds is taken, the first class where none does.
    rule: str | dict[str, str] | None = None
    #: Weight of this question's loss beside the others.
    weight: float = Field(default=1.0, ge=0)

    @field_validator("id")
    @classmethod
    def _id(cls, value: str) -> str:
        if not _IDENTIFIER.match(value):
            raise ValueError(f"{value!r} is no id: use a-z, 0-9 and _, a letter first, 48 characters at most")
        if value in RESERVED:
            raise ValueError(f"{value!r} is the name of another column: rename the question")
        if value.startswith(_RESERVED_STARTS):
            raise ValueError(f"{value!r} begins as a column of predictions does: rename the question")
        return value

    @field_validator("ask", "annotate")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the wording is empty")
        return value.strip()

    @model_validator(mode="after")
    def _consistent(self) -> Question:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes {list(self.classes)}: two or more distinct names are needed")
        for index, name in enumerate(self.classes):
            if not name or name != name.strip():
                raise ValueError(f"class {name!r}: a name that neither begins nor ends with a blank is needed")
            if name.isdecimal() and name != str(index):
                raise ValueError(
                    f"class {name!r} is the class of number {index}: a cell {name} could mean either; name it in words"
                )
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(f"positive {self.positive!r} is not one of the classes {list(self.classes)}")
        if self.answer == "class":
            if self.rule is not None:
                raise ValueError("a rule makes a class of a count; `answer: class` takes none")
            return self
        if self.rule is None:
            raise ValueError("`answer: count` needs a rule, for example `rule: count >= 1`")
        if isinstance(self.rule, str) and len(self.classes) != 2:
            raise ValueError(f"{len(self.classes)} classes need a rule for each class after the first")
        if isinstance(self.rule, dict) and set(self.rule) != set(self.classes[1:]):
            raise ValueError(
                f"rule names {sorted(self.rule)}; the classes after the first are {list(self.classes[1:])}"
            )
        for expression in self._rules().values():
            if not _RULE.match(expression):
                raise ValueError(f"rule {expression!r}: write `count >= NUMBER` or `share >= NUMBER`")
        return self

    def _rules(self) -> dict[str, str]:
        if isinstance(self.rule, dict):
            return {name: self.rule[name] for name in self.classes[1:]}
        return {self.classes[1]: self.rule} if self.rule is not None else {}

    @property
    def positive_index(self) -> int:
        return self.classes.index(self.positive) if self.positive is not None else len(self.classes) - 1

    def class_of(self, answer: int, n_images: int) -> int:
        """The class index of the annotator's `answer` for a post of `n_images` images.

        Raises:
            ValueError: the answer is no count of 0..n_images, or no class index.
        """
        if self.answer == "class":
            if not 0 <= answer < len(self.classes):
                raise ValueError(f"{self.id}: class {answer} of {len(self.classes)}")
            return answer
        if not 0 <= answer <= n_images:
            raise ValueError(f"{self.id}: {answer} images of {n_images}")
        found = 0
        for index, expression in enumerate(self._rules().values(), start=1):
            kind, bound = _RULE.match(expression).groups()  # type: ignore[union-attr]  # checked on load
            if (answer if kind == "count" else answer / n_images) >= float(bound):
                found = index
        return found


class FinalQuestion(Chosen):
    """The decision: two classes, one of them positive."""

    ask: str
    classes: tuple[str, str]
    positive: str

    @model_validator(mode="after")
    def _consistent(self) -> FinalQuestion:
        if self.classes[0] == self.classes[1] or self.positive not in self.classes:
            raise ValueError(
                f"classes {list(self.classes)}, positive {self.positive!r}: two names, one of them positive"
            )
        if self.classes.index(self.positive) != 1:
            raise ValueError(f"label 1 is the positive class: list {self.positive!r} second in classes")
        return self


class Task(Chosen):
    """A policy: intermediate questions in the order in which they are asked, then the decision."""

    name: str
    version: int = Field(ge=1)
    questions: tuple[Question, ...] = ()
    final: FinalQuestion

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _IDENTIFIER.match(value):
            raise ValueError(f"{value!r} is no name: use a-z, 0-9 and _, a letter first")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Task:
        seen: set[str] = set()
        for question in self.questions:
            if question.id in seen:
                raise ValueError(f"question id {question.id!r} is used twice: rename one")
            seen.add(question.id)
        return self

    @property
    def question_ids(self) -> tuple[str, ...]:
        return tuple(question.id for question in self.questions)

    @property
    def fingerprint(self) -> str:
        """Changes with anything that the model or the annotator reads, or with what is decided."""
        return _fingerprint(self.model_dump(mode="json"))

    @property
    def annotation_fingerprint(self) -> str:
        """Changes with what the annotator reads only: a new rule re-reads the answers already paid for."""
        return _fingerprint(
            [[q.id, q.annotate, list(q.classes) if q.answer == "class" else q.answer] for q in self.questions]
        )


def _fingerprint(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def task_differences(found: Task, expected: Task) -> list[str]:
    """What `found` has otherwise than `expected`, one line a key; empty where their fingerprints agree."""
    a, b = _flat(found.model_dump(mode="json")), _flat(expected.model_dump(mode="json"))
    return [
        f"{key}: {a.get(key, 'absent')!r:.80}, expected {b.get(key, 'absent')!r:.80}"
        for key in {**b, **a}
        if a.get(key, "absent") != b.get(key, "absent")
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots; a question goes by its id, so that an added one does not move the others."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {"order": [item["id"] for item in value]} | {item["id"]: item for item in value}
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat


def load_task(source: str | Path) -> Task:
    """Load a task by the name of a shipped one (`ucc`) or by a path.

    Raises:
        TaskError: no such file, not YAML, or a key that breaks a rule; the message names it.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = TASKS_DIR / f"{source}.yaml"
    try:
        raw = load_yaml(path)
    except FileNotFoundError:
        shipped = ", ".join(sorted(p.stem for p in TASKS_DIR.glob("*.yaml")))
        raise TaskError(f"task {source}: no file {path}; give a path to a YAML file or one of: {shipped}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TaskError(f"task {path}: cannot be read as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise TaskError(f"task {path}: a mapping was expected, found {type(raw).__name__}")
    try:
        return Task.model_validate(raw)
    except ValidationError as error:
        raise TaskError(f"task {path}: {explain_validation(error)}") from error
