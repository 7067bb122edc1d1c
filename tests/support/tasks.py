"""Small tasks, each with a binary question and one of three classes."""

from __future__ import annotations

from model.task import Task

_CLASSES = {"annotate": "Which?", "answer": "class"}

DEMO = Task.model_validate(
    {
        "name": "demo",
        "version": 1,
        "questions": [
            {"id": "blurred", "ask": "Blurred?", "annotate": "How many?", "rule": "count >= 1"},
            {"id": "kind", "ask": "Kind?", "classes": ["photo", "drawing", "text"], **_CLASSES},
        ],
        "final": {"ask": "Bad?", "classes": ["good", "bad"], "positive": "bad"},
    }
)
#: Its wordings hold what HTML, XML and matplotlib read as their own.
MENU = Task.model_validate(
    {
        "name": "menu",
        "version": 1,
        "questions": [
            {"id": "spicy", "ask": "Spicy & hot, $5 or $9?", "annotate": "Count.", "rule": "count >= 1"},
            {"id": "course", "ask": "Which course?", "classes": ["starter", "main", "dessert"], **_CLASSES},
        ],
        "final": {"ask": "Is the dish vegan?", "classes": ["other", "vegan"], "positive": "vegan"},
    }
)
QUEUE = Task.model_validate(
    {
        "name": "queue",
        "version": 1,
        "questions": [
            {"id": "ugc", "ask": 'Own "photo" & <text>?', "annotate": "?", "rule": "count >= 1"},
            {"id": "kind", "ask": "Which?", "classes": ["a", "b", "c"], **_CLASSES},
        ],
        "final": {"ask": "Bad?", "classes": ["good", "bad"], "positive": "bad"},
    }
)
