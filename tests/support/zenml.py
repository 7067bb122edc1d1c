"""ZenML without the user's own: its settings, its database, the stack that this repository names."""

from __future__ import annotations

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
def zenml_of_its_own(folder: Path) -> Iterator[None]:
    """While it lasts, settings and database are in `folder`, a ZenML repository and the working directory.

    In this repository ZenML would look up the stack that `.zen` names, not find it in another database,
    and reset `.zen` to the default: the next command of the user would run on the wrong stack.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENML_CONFIG_PATH", str(folder))
        (folder / ".zen").mkdir()  # else ZenML looks for the code's root beside a main module, which xdist has not
        patch.chdir(folder)
        _forget()
        yield
    _forget()
