"""The rows of current records, with what the review desk finds them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, func, select

from steps.retrain.reviewed import LABELS
from steps.retrain.stored import CURRENT

_AS_IN_HISTORY = tuple(column.name for column in CURRENT.c if column.name not in ("day", "change", "waiting"))
#: What no post has as its content.
_NEVER = object()


def current_rows(connection: Connection, newest: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of CURRENT, in the transaction of the only writer.

    Args:
        newest: by model and post, the row of the history with its `history_id`.
    """
    models, posts = (sorted({place[k] for place in newest}) for k in (0, 1))
    change = {name: _next_change(connection, name) for name in models}
    query = select(LABELS.c.model_name, LABELS.c.post_id, LABELS.c.input_sha256)
    query = query.where(LABELS.c.model_name.in_(models), LABELS.c.post_id.in_(posts))
    looked_at = {(row[0], row[1]): row[2] for row in connection.execute(query)}
    return [
        {name: row[name] for name in _AS_IN_HISTORY}
        | {"day": row["scored_at"].date(), "change": change[place[0]]}
        | {"waiting": looked_at.get(place, _NEVER) != row["input_sha256"]}
        for place, row in newest.items()
    ]


def _next_change(connection: Connection, model_name: str) -> int:
    last = select(func.max(CURRENT.c.change)).where(CURRENT.c.model_name == model_name)
    return (connection.execute(last).scalar() or 0) + 1
