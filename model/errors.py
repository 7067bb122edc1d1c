"""The errors that a user can cause, and fix.

Each message names the file, row or key, what was found, what was expected and what to do.
"""

from collections.abc import Callable, Iterable, Iterator


def plain(text: str) -> str:
    """Words of others for a terminal, a log or a message: in one line, with what does not print escaped.

    An escape sequence would colour, move or clear the terminal; a line break would begin a line that looks like ours.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def cut(text: str, most: int) -> str:
    """At most so many characters of a text; the last one says that there was more."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _came_of(error: BaseException) -> tuple[BaseException | None]:
    return (error.__cause__ or error.__context__,)


def chain(
    error: BaseException | None, came_of: Callable[[BaseException], Iterable[BaseException | None]] = _came_of
) -> Iterator[BaseException]:
    """The error and those that it came of, each once.

    Args:
        came_of: the next links; None among them is passed over.
    """
    todo, seen = [error], set[int]()
    while todo:
        found = todo.pop()
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            yield found
            todo += came_of(found)


class AgentPSError(Exception):
    """Base of every error whose message is meant for the person who runs the pipeline."""

    def __str__(self) -> str:
        """Whatever was put into the message is `plain`, but for line breaks, which some of ours have."""
        return "\n".join(map(plain, super().__str__().split("\n")))


class ConfigError(AgentPSError):
    """An option is unknown, missing or out of its range."""


class TaskError(AgentPSError):
    """A task file breaks the rules in `model.task`."""


class ManifestError(AgentPSError):
    """A manifest cannot be read, or too many of its posts were rejected."""


class ImageError(AgentPSError):
    """An image cannot be used; the message is the reason shown in the rejects table."""


class AnnotationError(AgentPSError):
    """The annotator cannot be reached, or refuses every request (authentication, quota)."""


class DataError(AgentPSError):
    """The data broke a critical expectation."""


class PromptError(AgentPSError):
    """A sequence would have its answer positions in the wrong place."""


class CheckpointError(AgentPSError):
    """A checkpoint lacks a part or was made for another backbone or task."""


class RegistryError(AgentPSError):
    """The registry refuses, or holds something that this project did not write."""


class StoreError(AgentPSError):
    """The store of scored posts cannot be opened, read or written, or holds what this project did not write."""


class ScheduleError(AgentPSError):
    """The machine has no scheduler that can be used, refuses a schedule, or there is none."""


class DiskError(AgentPSError):
    """A file cannot be written: the disk is full, or its place is not ours to write to."""
