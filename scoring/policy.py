"""A policy: what happens to a post, given what a version said of it. A YAML file; docs/store.md shows one.

The order: a post without a score is an `error`, whatever else holds; a post on an allow-list passes; else the first
rule that holds decides; else the precision target does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model.errors import AgentPSError, ConfigError
from model.metrics import point_name
from model.schema import POST_ID
from model.settings import Variant, answers_questions
from model.strict import Chosen, explain_validation
from model.task import Task, load_task
from model.yaml_file import load_yaml
from scoring.record import Record
from scoring.rules import Expression, parse_expression

_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")


class Outcome(BaseModel):
    """What the policy says of one record.

    A random draw changes nothing of what happens to the post: a post that is flagged and drawn is flagged, and a person
    looks at it as well (`for_people`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["flag", "pass", "review", "error"] = Field(description="review: a person decides")
    reasons: tuple[str, ...] = Field(description="what decided: a rule, an allow-list, the precision target, the error")
    policy_version: str = Field(description="name, version and digest of the policy")
    audit: bool = Field(description="drawn at random for people, beside what happens to the post")
    audit_probability: float = Field(
        ge=0,
        le=1,
        description="with which people look at a post like this one: the audit's share of its action; 1 for review",
    )

    @property
    def for_people(self) -> bool:
        return self.audit or self.action == "review"


class Rule(Chosen):
    """The first rule whose expression (`scoring.rules`) holds decides."""

    name: str = Field(pattern=r"\S")
    when: str = Field(pattern=r"\S")
    action: Literal["flag", "pass", "review"]


class Audit(Chosen):
    """The share of the flagged and of the passed posts that people look at. The same seed draws the same posts."""

    seed: int = 0
    flag: float = Field(0.0, ge=0, le=1)
    pass_: float = Field(0.0, ge=0, le=1, alias="pass")


class Allow(Chosen):
    """What passes, whatever the version says of it. fields: of the message that named the post, and their values.

    A number without quotes is refused: YAML reads 0042 as 34.
    """

    post_ids: tuple[str, ...] = ()
    fields: dict[str, tuple[str, ...]] = {}


class PolicyFile(Chosen):
    name: str
    version: int = Field(ge=1)
    #: The name of a shipped task, or the path of a task file, relative to the policy's: whose questions the rules name.
    task: str = Field(pattern=r"\S")
    #: In percent: flagged is what the version flags at the threshold for it. Null: the rules alone flag.
    precision: int | None = Field(None, gt=0, lt=100)
    rules: tuple[Rule, ...] = ()
    allow: Allow = Allow()
    audit: Audit = Audit.model_validate({})

    @field_validator("name")
    @classmethod
    def _usable(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("use a-z, 0-9 and _, a letter first, 48 characters at most")
        return value

    @model_validator(mode="after")
    def _decides(self) -> PolicyFile:
        names = [rule.name for rule in self.rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rules: the name {twice[0]!r} stands there twice: rename one")
        if self.precision is None and not any(rule.action != "pass" for rule in self.rules):
            raise ValueError("neither a precision target nor a rule that flags or asks for review: nothing happens")
        return self


@dataclass(frozen=True)
class Policy:
    """version: as records and outcomes name it."""

    file: PolicyFile
    task: Task
    source: Path
    version: str
    rules: tuple[tuple[Rule, Expression], ...]
    allowed: Mapping[str, frozenset[str]]

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Raises: ConfigError: no such file, no YAML, an unknown key, question or class, or a value out of range."""
        path = Path(path)
        try:
            raw = load_yaml(path)
        except FileNotFoundError:
            raise ConfigError(f"policy {path}: no such file: give the path of a policy in YAML") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"policy {path}: cannot be read as YAML: {error}") from error
        return cls.parse(raw, path)

    @classmethod
    def parse(cls, raw: object, path: Path) -> Policy:
        """What a policy's file holds. path: for messages; a task's path is relative to it. Raises: as `load`."""
        if not isinstance(raw, dict):
            raise ConfigError(f"policy {path}: a mapping was expected, found {type(raw).__name__}")
        try:
            file = PolicyFile.model_validate(raw)
        except ValidationError as error:
            raise ConfigError(f"policy {path}: {explain_validation(error)}") from error
        is_path = file.task.endswith((".yaml", ".yml"))
        try:
            task = load_task(path.parent / file.task if is_path else file.task)
        except AgentPSError as error:
            raise ConfigError(f"policy {path}: {error}") from error
        return cls._of(file, task, path)

    @classmethod
    def _of(cls, file: PolicyFile, task: Task, path: Path) -> Policy:
        rules = []
        for rule in file.rules:
            try:
                rules.append((rule, parse_expression(rule.when, task)))
            except ValueError as error:
                raise ConfigError(f"policy {path}: rule {rule.name!r}: {error}") from None
        canonical = json.dumps([file.model_dump(mode="json"), task.fingerprint], sort_keys=True)
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:12]
        lists = {POST_ID: file.allow.post_ids, **file.allow.fields}
        allowed = {field: frozenset(values) for field, values in lists.items()}
        return cls(file, task, path, f"{file.name}-{file.version}-{digest}", tuple(rules), allowed)

    @property
    def point(self) -> str | None:
        """The operating point that flags, as `p80`."""
        return None if self.file.precision is None else point_name(self.file.precision)

    def check(self, task: Task, points: Collection[str], variant: Variant | None = None) -> None:
        """Before a version's posts are scored: has it what the policy asks for?

        Args:
            task, points, variant: the version's, as `LocalScore` has them; None: one that answers the questions.

        Raises:
            ConfigError: it lacks a threshold or a question, or a question has other classes.
        """
        asked = {point for _, expression in self.rules for point in expression.points}
        asked |= {self.point} if self.point else set()
        if lacking := sorted(asked - set(points)):
            raise ConfigError(
                f"policy {self.source}: the version has no threshold for {', '.join(lacking)} (it has "
                f"{', '.join(points) or 'none'}): change the policy, or evaluate.precisions of the training"
            )
        answered = variant is None or answers_questions(variant)
        theirs = {question.id: question for question in task.questions if answered}
        ours = {question.id: question for question in self.task.questions}
        for name in sorted({name for _, expression in self.rules for name in expression.questions}):
            known, wanted = theirs.get(name), ours[name]
            if known is None or (known.classes, known.positive_index) != (wanted.classes, wanted.positive_index):
                found = "does not answer it" if known is None else f"has the classes {', '.join(known.classes)}"
                raise ConfigError(
                    f"policy {self.source}: the question {name} of its task {self.file.task} has the classes "
                    f"{', '.join(wanted.classes)}; the version {found}: name the version's task in the policy, or "
                    "change its rules"
                )

    def decide(self, record: Record, fields: Mapping[str, Any] | None = None) -> Outcome:
        """The same for the same record and fields, always.

        Args:
            fields: others of the post's, for the allow-lists; None: there are none where it comes from.

        Raises:
            ConfigError: the record lacks an answer or a decision that the policy asks for (see `check`), or there are
                no fields and the policy has lists of them.
        """
        if fields is None and self.file.allow.fields:
            names = ", ".join(self.file.allow.fields)
            raise ConfigError(f"policy {self.source}: allow.fields: posts have no {names} here: remove them")
        try:
            action, reason = self._action(record, fields or {})
        except KeyError as error:
            raise ConfigError(
                f"policy {self.source}: {record.model_name} version {record.model_version} says nothing of {error}, "
                "which the policy asks for: change the policy, or score with a version that answers it"
            ) from None
        share = {"flag": self.file.audit.flag, "pass": self.file.audit.pass_, "review": 1.0, "error": 0.0}[action]
        drawn = action in ("flag", "pass") and _place(self.file.audit.seed, record.post_id) < share
        return Outcome(
            action=action, reasons=(reason,), policy_version=self.version, audit=drawn, audit_probability=share
        )

    def _action(
        self, record: Record, fields: Mapping[str, Any]
    ) -> tuple[Literal["flag", "pass", "review", "error"], str]:
        if record.error is not None:
            return "error", record.error
        cells = {**fields, POST_ID: record.post_id}
        for field, values in self.allowed.items():
            cell = cells.get(field)
            if isinstance(cell, str | int) and not isinstance(cell, bool) and str(cell) in values:
                return "pass", f"allowed by {field}"
        for rule, holds in self.rules:
            if holds(record):
                return rule.action, f"rule {rule.name}"
        if self.point is None:
            return "pass", "no rule holds"
        return ("flag" if record.decisions[self.point] else "pass"), self.point


def _place(seed: int, post_id: str) -> float:
    """From 0 to 1, even over posts. A larger share has all posts of a smaller one."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, post_id]).encode()).digest()[:8]) / 2**64
