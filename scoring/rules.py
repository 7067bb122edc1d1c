"""The expressions of a policy's rules: `watermark and not ugc`, `kind == photo and score >= 0.4`, `p95 or kind == b`.

They are Python's syntax and nothing of Python's: the text is parsed, each part is looked at, and what is not listed
here is refused. Nothing is evaluated by Python.

| part | is |
|---|---|
| a question with two classes | true where the answer is its positive class |
| `question == class`, `!=`, `in (class, class)`, `not in` | its answer; a class that is no word stands in quotes |
| `score` and a number, with `<`, `<=`, `>`, `>=` | the calibrated probability of the positive class |
| `p80` | flagged at the threshold for 80 % precision |
| `and`, `or`, `not`, parentheses | as they read |
"""

from __future__ import annotations

import ast
import keyword
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from model.task import Question, Task
from scoring.record import Record

_LONGEST = 1_000
_POINT = re.compile(r"p[0-9]{1,2}")
_ORDER: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_GRAMMAR = "questions, their classes, score, p80, and, or, not, ==, !=, in, <, <=, >, >= and parentheses are known"

#: What a part says of a record that has a score.
_Test = Callable[[Record], bool]


@dataclass(frozen=True)
class Expression:
    """Call it with a record that has a score; a KeyError is a question or point that the record lacks.

    questions, points: that it asks for.
    """

    test: _Test
    questions: frozenset[str]
    points: frozenset[str]

    def __call__(self, record: Record) -> bool:
        return self.test(record)


def parse_expression(text: str, task: Task) -> Expression:
    """Raises: ValueError: it is no such expression, or names a question or class that the task does not have."""
    if len(text) > _LONGEST:
        raise ValueError(f"{len(text):,} characters; an expression has {_LONGEST:,} at most: make several rules of it")
    try:
        node = ast.parse(" ".join(text.split()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no expression ({getattr(error, 'msg', error)}); {_GRAMMAR}") from None
    parser = _Parser(task)
    test = parser.test(node)
    return Expression(test, frozenset(parser.questions), frozenset(parser.points))


class _Parser:
    def __init__(self, task: Task) -> None:
        self._known = {question.id: question for question in task.questions}
        self.questions: set[str] = set()
        self.points: set[str] = set()

    def test(self, node: ast.expr) -> _Test:
        if isinstance(node, ast.BoolOp):
            tests = [self.test(value) for value in node.values]
            combine = all if isinstance(node.op, ast.And) else any
            return lambda record: combine(test(record) for test in tests)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.test(node.operand)
            return lambda record: not inner(record)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.Name):
            return self._truth(node.id)
        raise _unknown(node)

    def _truth(self, name: str) -> _Test:
        if name == "score":
            raise ValueError("`score` is a number: compare it, for example `score >= 0.9`")
        if name not in self._known and _POINT.fullmatch(name):
            self.points.add(name)
            return lambda record: record.decisions[name]
        question = self._question(name)
        if len(question.classes) != 2:
            raise ValueError(f"`{name}` has the classes {_listed(question)}: say which, for example `{name} == CLASS`")
        positive = question.classes[question.positive_index]
        return lambda record: record.answers[name].answer == positive

    def _question(self, name: str) -> Question:
        if name not in self._known:
            known = ", ".join(self._known) or "it has none"
            raise ValueError(f"`{name}` is neither score nor a question of the task ({known})")
        self.questions.add(name)
        return self._known[name]

    def _comparison(self, node: ast.Compare) -> _Test:
        sides = [node.left, *node.comparators]
        if any(type(side) is ast.Name and side.id == "score" for side in sides):
            return self._of_score(node, sides)
        if len(node.ops) != 1 or not isinstance(node.left, ast.Name):
            raise _unknown(node)
        question, (op,), (right,) = self._question(node.left.id), node.ops, node.comparators
        if isinstance(op, ast.Eq | ast.NotEq):
            wanted = frozenset({_class_of(question, right)})
        elif isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.Tuple | ast.List | ast.Set) and right.elts:
            wanted = frozenset(_class_of(question, element) for element in right.elts)
        else:
            raise _unknown(node)
        among = isinstance(op, ast.Eq | ast.In)
        return lambda record: (record.answers[question.id].answer in wanted) == among

    def _of_score(self, node: ast.Compare, sides: list[ast.expr]) -> _Test:
        """Chains, too: `0.4 <= score < 0.8`."""
        values = [None if isinstance(side, ast.Name) and side.id == "score" else _number(side) for side in sides]
        if any(type(op) not in _ORDER for op in node.ops):
            raise ValueError(f"`{ast.unparse(node)}`: a score is compared by <, <=, > or >=")
        steps = [(a, _ORDER[type(op)], b) for a, op, b in zip(values, node.ops, values[1:], strict=False)]

        def holds(record: Record) -> bool:
            score = float(record.score)  # type: ignore[arg-type]  # only of records that have one
            return all(order(score if a is None else a, score if b is None else b) for a, order, b in steps)

        return holds


def _number(node: ast.expr) -> float:
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise ValueError(f"`{ast.unparse(node)}`: a score is compared with a number from 0 to 1")


def _class_of(question: Question, node: ast.expr) -> str:
    name = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
    if not isinstance(name, str) or name not in question.classes:
        raise ValueError(f"`{ast.unparse(node)}` is no class of {question.id}; it has {_listed(question)}")
    return name


def _listed(question: Question) -> str:
    return ", ".join(
        name if name.isidentifier() and not keyword.iskeyword(name) else repr(name) for name in question.classes
    )


def _unknown(node: ast.expr) -> ValueError:
    return ValueError(f"`{ast.unparse(node):.80}` is not understood: {_GRAMMAR}")
