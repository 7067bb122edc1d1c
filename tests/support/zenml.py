"""ZenML without the user's own: its settings, its database, the stack that this repository names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration


def _forget() -> None:
    Client._reset_instance()
    GlobalConfiguration._reset_instance()


@contextmanager
def zenml_of_its_own(folder: Path, made: Path | None = None) -> Iterator[None]:
    """While it lasts, settings and database are in `folder`, a ZenML repository and the working directory.

    In this repository ZenML would look up the stack that `.zen` names, not find it in another database,
    and reset `.zen` to the default: the next command of the user would run on the wrong stack.

    Args:
        made: a folder that `make_zenml` has filled: ZenML takes seconds to make its tables.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENML_CONFIG_PATH", str(folder))
        if made is None:
            (folder / ".zen").mkdir()  # else ZenML looks for the code's root beside a main module, which xdist has not
        else:
            copy_zenml(made, folder)
        patch.chdir(folder)
        _forget()
        yield
    _forget()


def make_zenml(folder: Path) -> Path:
    """ZenML's settings and tables as it makes them when it is used for the first time."""
    with zenml_of_its_own(folder):
        Client()
    return folder


def copy_zenml(made: Path, folder: Path) -> None:
    shutil.copytree(made, folder, dirs_exist_ok=True)
    settings = folder / "config.yaml"
    settings.write_text(settings.read_text(encoding="utf-8").replace(str(made), str(folder)), encoding="utf-8")
