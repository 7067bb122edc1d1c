"""The edge of commands and pipelines: an error that a user can mend ends in one message, without a traceback.

What a user can mend is our own errors, and what goes wrong around us: disks, rights, databases, servers. ZenML works on
its database before any code of ours is imported, so that no `try` of ours is around it: the environment's Python hands
what nobody caught to `show` (infra/errors_told.pth).
"""

from __future__ import annotations

import errno
import os
import shlex
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from traceback import walk_tb
from types import TracebackType

import click
import yaml
from pydantic import ValidationError

from model.errors import AgentPSError, chain, cut
from model.files import full_disk
from model.strict import explain_validation
from steps.notify import one_line
from steps.paths import REPOSITORY, home
from steps.secrets import mask_error, masked

_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)
_OTHERS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO)
#: Seconds that another process may hold a database.
_PATIENCE = 10
#: ZenML's errors about a step or a materializer that is written wrong.
_FAULTS = ("StepInterfaceError", "MaterializerInterfaceError")
#: Characters of another library's message.
_LONGEST = 400


def told(error: BaseException) -> str | None:
    """The message for an error that is no fault of the code; None: it is one, and keeps its traceback.

    In either case secrets in the error, and in those that it came of, are masked.
    `ZENML_LOGGING_VERBOSITY=DEBUG` asks for everything: then only our own errors have a message.
    """
    mask_error(error)
    if isinstance(error, AgentPSError):
        return str(error)
    if os.environ.get("ZENML_LOGGING_VERBOSITY", "").upper() == "DEBUG":
        return None
    if (full := full_disk(error, home(), Path(tempfile.gettempdir()))) is not None:
        return full
    for explain in (_ours, _database, _around):  # MLflow and ZenML wrap a database's error: it says more
        for inner in chain(error, _came_of):
            if (found := explain(inner)) is not None:
                return masked(one_line(found))
    return None


@contextmanager
def in_one_message() -> Iterator[None]:
    """Raises: click.ClickException with the message of `told`, in place of an error that has one."""
    try:
        yield
    except click.exceptions.Exit:  # click's own way to end
        raise
    except Exception as error:
        if (line := told(error)) is None:
            raise
        raise click.ClickException(line) from error


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What `sys.excepthook` is in the command `zenml` of the project's environment."""
    if isinstance(error, Exception) and (line := told(error)) is not None:
        click.echo(f"Error: {line}", err=True)
    else:
        sys.__excepthook__(kind, error, trace)


def _came_of(error: BaseException) -> tuple[BaseException | None]:
    """What led to an error; but not the one in whose handling our own code failed."""
    return (error.__cause__ or (None if _raised_by_us(error) else error.__context__),)


def _raised_by_us(error: BaseException) -> bool:
    """Whether the line that raised it, or had Pydantic raise it, is in the repository and in no installed package."""
    files = [Path(frame.f_code.co_filename) for frame, _ in walk_tb(error.__traceback__)]
    path = next((file for file in reversed(files) if "pydantic" not in file.parts), Path())
    return path.is_relative_to(REPOSITORY) and "site-packages" not in path.parts


def zenml_folder() -> Path:
    """Where ZenML keeps its settings and, unless they say otherwise, its database."""
    return Path(os.environ.get("ZENML_CONFIG_PATH") or click.get_app_dir("zenml"))


def _ours(error: BaseException) -> str | None:
    return str(error) if isinstance(error, AgentPSError) else None


def _around(error: BaseException) -> str | None:
    module = type(error).__module__
    if module.startswith("alembic."):
        return (
            f"the database of ZenML or of MLflow was written by another version ({_cut(error)}): take the version that "
            f"wrote it, or move the file away ({' or '.join(shlex.quote(str(path)) for _, path in _databases())})"
        )
    if isinstance(error, ValidationError):  # those of our own files are our own errors
        return None if _raised_by_us(error) else f"ZenML: {explain_validation(error)}"
    if isinstance(error, Exception) and module == "mlflow.exceptions":  # of ZenML's calls: the registry's are ours
        from steps.register.reach import place, trouble

        line = trouble(error)
        return line and f"MLflow {place()}: {line}"
    if module.startswith("zenml.exceptions") and type(error).__name__ not in _FAULTS:
        return f"ZenML: {_cut(error)}"
    if module.startswith(("requests.exceptions", "urllib3.exceptions", "httpx")):
        return f"no answer from a server ({type(error).__name__}): {_cut(error)}: check its address, and that it runs"
    if isinstance(error, TypeError) and "No store implementation found" in str(error):
        return f"ZENML_STORE_URL: {error} https://HOST, mysql://USER@HOST/NAME or sqlite:////PATH is expected"
    if isinstance(error, yaml.YAMLError):  # those of our own files are our own errors
        return _settings(error)
    if isinstance(error, OSError) and error.errno is not None:
        return _disk(error)
    return None


def _settings(error: yaml.YAMLError) -> str:
    files = [zenml_folder() / "config.yaml", REPOSITORY / ".zen" / "config.yaml"]
    for path in files:
        try:
            yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError:
            return f"ZenML's settings, {path}, are no YAML: correct or remove the file"
        except (OSError, UnicodeDecodeError):
            continue
    return f"a file is no YAML: {_cut(error)}"


def _cut(error: BaseException) -> str:
    return cut(masked(one_line(str(error))), _LONGEST)


def _disk(error: OSError) -> str | None:
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    what = f"{path or 'a file'}: {error.strerror}"
    if path is not None and error.errno in (*_RIGHTS, *_OTHERS):
        for name, folder in (("AGENTPS_HOME", home()), ("ZENML_CONFIG_PATH", zenml_folder())):
            if path.absolute().is_relative_to(folder) or folder.absolute().is_relative_to(path.absolute()):
                if error.errno == errno.ENOENT and folder.is_dir():  # a file that is not there is a fault of ours
                    return None
                return f"{what}: set {name}, now {folder}, to a folder in which you may write"
    if error.errno in _RIGHTS:
        return f"{what}: give yourself the right to it, or name another place"
    return None


def _database(error: BaseException) -> str | None:
    if not (isinstance(error, sqlite3.Error) or type(error).__module__.startswith("sqlalchemy.exc")):
        return None
    return sick_database() or f"a database says: {_cut(getattr(error, 'orig', None) or error)}"


def sick_database() -> str | None:
    """Which of the files in which ZenML and MLflow keep everything cannot be used, and what helps; None: neither."""
    for what, path in _databases():
        if (found := _sick(path)) is not None:
            return f"{what}, {path}: {found}"
    return None


def _databases() -> list[tuple[str, Path]]:
    database = zenml_folder() / "local_stores" / "default_zen_store" / "zenml.db"
    with suppress(OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        settings = yaml.safe_load((zenml_folder() / "config.yaml").read_text(encoding="utf-8"))
        database = Path(settings["store"]["database"])
    return [("ZenML's database", database), ("MLflow's database", home() / "mlflow.db")]


def _sick(path: Path) -> str | None:
    """What is wrong with a SQLite file, and what helps; None: nothing, or there is none."""
    if not path.exists():
        return None
    away = shlex.join(["mv", str(path), f"{path}.broken"])
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=_PATIENCE)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                return f"is damaged ({found}): bring back a copy, or start with an empty one: `{away}`"
            return None
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return "another process holds it: wait for its end, or end it, then start the same command again"
        return f"{error}: give yourself the right to read and write it, and make room on its disk"
    except sqlite3.DatabaseError as error:
        return f"{error}: bring back a copy, or start with an empty one: `{away}`"
