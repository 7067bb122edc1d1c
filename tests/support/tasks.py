"""Small tasks, each with a question that counts images and one of three classes."""

from __future__ import annotations

from typing import Any

from model.task import Task


def _task(name: str, counted: dict[str, Any], chosen: dict[str, Any], ask: str, classes: tuple[str, str]) -> Task:
    questions = [
        counted | {"annotate": "How many?", "rule": "count >= 1"},
        chosen | {"annotate": "Which?", "answer": "class"},
    ]
    final = {"ask": ask, "classes": classes, "positive": classes[1]}
    return Task.model_validate({"name": name, "version": 1, "questions": questions, "final": final})


DEMO = _task(
    "demo",
    {"id": "blurred", "ask": "Blurred?"},
    {"id": "kind", "ask": "Kind?", "classes": ["photo", "drawing", "text"]},
    "Bad?",
    ("good", "bad"),
)
# The wordings of these two hold what HTML, XML and matplotlib read as their own.
MENU = _task(
    "menu",
    {"id": "spicy", "ask": "Spicy & hot, $5 or $9?"},
    {"id": "course", "ask": "Which course?", "classes": ["starter", "main", "dessert"]},
    "Is the dish vegan?",
    ("other", "vegan"),
)
QUEUE = _task(
    "queue",
    {"id": "ugc", "ask": 'Own "photo" & <text>?'},
    {"id": "kind", "ask": "Which?", "classes": ["a", "b", "c"]},
    "Bad?",
    ("good", "bad"),
)
