"""One post as people give it: a row of a manifest, or the body of a request. Imports no torch.

`Post` is the contract: what a cell may hold is checked here and nowhere else, for every table that names posts. Its
JSON schema is a service's body, and `markdown_table` renders it for the docs.
"""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pandas as pd
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    model_validator,
)

from .schema import IMAGES, LABEL, VIDEO
from .task import Question, Task

#: Characters of a cell that a message shows.
_SHOWN = 80
#: Of an id: it stands in the index of a database, in file names and in lines of a terminal.
_MOST_ID = 512
#: Control characters, halves of characters, and those that are not seen or turn the direction of others.
_UNSEEN = frozenset(("Cc", "Cs", "Cf", "Zl", "Zp"))


@dataclass(frozen=True)
class Expects:
    """What a column holds, in the words of a message: `label: 2; 0, 1 or null is expected`."""

    what: str


def _whole_number(cell: Any) -> Any:
    """A whole float counts: pandas writes a column of integers and nulls as floats. `true` does not."""
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    return cell


def _id_text(cell: Any) -> Any:
    """A whole number is an id, too: its decimal text. A float is not: large ones are not what was written."""
    return str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else cell


def _name(text: str) -> str:
    """A text that stands in tables, messages and terminals as it is, and is the same after a spreadsheet had it."""
    if text != text.strip() or len(text) > _MOST_ID:
        raise ValueError("blanks around it, or too long")
    if not text.isprintable() and not _UNSEEN.isdisjoint(map(unicodedata.category, text)):
        raise ValueError("control characters")
    return text


def _time(cell: Any) -> datetime:
    try:
        time = cell if isinstance(cell, datetime) else datetime.fromisoformat(cell)
        if time.tzinfo is None:
            raise ValueError("no zone")
        return time.astimezone(UTC)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None


def _one_or_a_video(images: list[str], info: ValidationInfo) -> list[str]:
    if not images and info.data.get(VIDEO, "faulty") is None:
        raise ValueError("no image, and no video")
    return images


def _nullable(**schema: Any) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [schema, {"type": "null"}]})


#: As `_name` has it, for a service's body.
_NAME_SCHEMA = {"type": "string", "maxLength": _MOST_ID, "pattern": r"^\S([^\u0000-\u001f\u007f-\u009f]*\S)?$"}
PostId = Annotated[
    str,
    Field(pattern=r"\S"),
    AfterValidator(_name),
    BeforeValidator(_id_text),
    WithJsonSchema({"anyOf": [_NAME_SCHEMA, {"type": "integer"}]}),
    Expects(f"text of 1 to {_MOST_ID} characters without control characters and outer blanks, or a whole number"),
]
#: UTC. Any zone is read.
Time = Annotated[
    datetime,
    PlainValidator(_time),
    WithJsonSchema({"type": "string", "format": "date-time"}),
    Expects("ISO 8601 with a zone, as 2025-03-01T12:00:00Z,"),
]
#: The bound makes pydantic look at the characters: JSON can spell lone surrogates, which no file of ours can hold.
_Text = Annotated[str, Field(min_length=0), _nullable(type="string"), Expects("text or null")]


class Row(BaseModel):
    """A row of a table. A null cell is the same as an absent one; a cell of another type is never converted."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, cells: Any) -> Any:
        """NaN, NaT and NA are how pandas writes null; an array is how it reads a list.

        The images of a post that has a video may be missing.
        """
        if not isinstance(cells, Mapping):
            return cells
        given = {
            name: cell.tolist() if isinstance(cell, np.ndarray) else cell
            for name, cell in cells.items()
            if cell is not None and cell is not pd.NaT and cell is not pd.NA
            if not (isinstance(cell, float) and cell != cell)
        }
        if VIDEO in given and VIDEO in cls.model_fields:
            given.setdefault(IMAGES, [])
        return given


class Post(Row):
    """One post. `row_of` adds a column for each question of a task."""

    post_id: Annotated[PostId, Field(description="unique; a whole number is read as its decimal text")]
    video: Annotated[
        Annotated[str, Field(pattern=r"\S")] | None,
        Field(description="a path as those of `images`; MP4, MOV, WebM or MKV, of which 16 frames follow the images"),
        Expects("a path or null"),
    ] = None
    images: Annotated[
        list[Annotated[str, Field(pattern=r"\S")]],
        AfterValidator(_one_or_a_video),
        Field(
            description="paths relative to the manifest, inside its folder (links followed); JPEG, PNG or WebP; may be "
            "left out where there is a `video`",
        ),
        Expects("a list of one or more paths"),
    ]
    title: Annotated[_Text, Field(description="may be empty")] = ""
    text: Annotated[_Text, Field(description="may be empty; holds description and hashtags")] = ""
    label: Annotated[
        int | None,
        BeforeValidator(_whole_number),
        Field(ge=0, le=1, description="people's decision; 1 is the positive class. Null: trains the questions only"),
        _nullable(enum=[0, 1]),
        Expects("0, 1 or null"),
    ] = None
    created_at: Annotated[
        Time | None,
        Field(description="needed with `validate.time_ordered` and for retraining"),
        Expects("ISO 8601 with a zone, as 2025-03-01T12:00:00Z, or null"),
    ] = None
    language: Annotated[
        Annotated[str, Field(pattern=r"\S"), AfterValidator(_name)] | None,
        Field(description="for example `en`; where it is there, the gate looks at each language by itself"),
        Expects("a language's name, for example en, or null"),
    ] = None
    split: Annotated[
        Literal["train", "val", "test"] | None,
        Field(description="null: by a hash of `post_id`, which stays as posts arrive"),
        Expects("one of train, val, test or null"),
    ] = None


def row_of(task: Task | None = None, columns: Collection[str] | None = None) -> type[Row]:
    """`Post` with one column for each question of `task`; of all these only `columns`, where they are given.

    A question's cell is a class index or a class's name; `model_dump(by_alias=True)` gives the index, by the
    question's id. Aliases, because a question may have the name of a method of pydantic's.
    """
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in Post.model_fields.items()}
    ids = {name: name for name in fields}
    for number, question in enumerate(task.questions if task else ()):
        name = f"question_{number}"
        fields[name], ids[name] = (_class_cell(question), None), question.id
    if columns is None:
        return create_model("Post", __base__=Post, **{n: f for n, f in fields.items() if n not in Post.model_fields})
    return create_model("Row", __base__=Row, **{name: fields[name] for name in fields if ids[name] in columns})


def columns_of(row: type[Row]) -> list[str]:
    return [field.alias or name for name, field in row.model_fields.items()]


def _class_cell(question: Question) -> Any:
    classes, last = question.classes, len(question.classes) - 1

    def index_of(cell: Any) -> Any:
        if isinstance(cell, str):
            return classes.index(cell.strip()) if cell.strip() in classes else cell
        return _whole_number(cell)

    return Annotated[
        int | None,
        BeforeValidator(index_of),
        Field(ge=0, le=last, alias=question.id, description=f"people's answer: {question.ask}"),
        _nullable(enum=[*range(len(classes)), *classes]),
        Expects(f"a class index 0 to {last}, one of {list(classes)} or null"),
    ]


_R = TypeVar("_R", bound=Row)
_post_id: TypeAdapter[str] = TypeAdapter(PostId, config=Row.model_config)


def parse(row: type[_R], cells: Mapping[str, Any], *, text: bool = False) -> tuple[_R | None, list[str]]:
    """The checked row; or None, and for each faulty cell its column, what was found and what is expected.

    Args:
        text: the cells are those of a CSV: `1` is a number, `true` a truth value.
    """
    try:
        return row.model_validate(cells, strict=False if text else None), []
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        first = {fault["loc"][0]: fault for fault in reversed(faults)}  # of a list of very many wrong values, one
        return None, [_fault(row, found) for found in reversed(first.values())]


def post_id_of(cell: Any) -> str | None:
    """The id in a cell; None where it holds none."""
    try:
        return _post_id.validate_python(cell)
    except ValidationError:
        return None


def _fault(row: type[Row], error: Any) -> str:
    column = error["loc"][0]
    field = next(f for name, f in row.model_fields.items() if column in (name, f.alias))
    expected = next(m.what for m in reversed(field.metadata) if isinstance(m, Expects))
    found = "missing" if error["type"] == "missing" else shown(error["input"])
    if error["type"] == "string_unicode":
        found += " holds half of a character (a lone surrogate)"
    return f"{column}: {found}; {expected} is expected"


_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxstring, _short.maxlong, _short.maxother = 4, _SHOWN, _SHOWN, _SHOWN, _SHOWN


def shown(value: Any) -> str:
    """A cell in a message: short, in one line, control characters escaped; however large or deep it is."""
    try:
        text = repr(value[:_SHOWN]) if isinstance(value, str | bytes) else _short.repr(value)
    except (ValueError, RecursionError):  # a whole number of very many digits; an array of very deep lists
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


# --- for the docs -------------------------------------------------------------------------------------------


def markdown_table() -> str:
    """The columns of a manifest, as the docs show them."""
    schema = Post.model_json_schema()
    lines = ["| column | type | meaning |", "|---|---|---|"]
    for name, column in schema["properties"].items():
        need = "required; " if name in schema["required"] else ""
        lines.append(f"| `{name}` | {_type(column)} | {need}{column['description']} |")
        if name == LABEL:
            lines.append("| one per question, named by its id | class index, class name, or null | people's answers |")
    return "\n".join(lines)


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"list of one or more {_type(schema['items'])}s"
    if schema.get("format") == "date-time":
        return "ISO 8601 with a zone"
    return {"integer": "whole number"}.get(schema["type"], schema["type"])


if __name__ == "__main__":
    print(markdown_table())  # noqa: T201
