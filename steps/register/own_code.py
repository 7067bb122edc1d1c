"""Which code scores with a registered version: its own, or, where that does the same, the repository's."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from model.errors import CheckpointError
from steps.caching import code_digest
from steps.paths import REPOSITORY
from steps.register.pyfunc import CODE, own_code

if TYPE_CHECKING:
    from model.scorer import Scorer

logger = logging.getLogger(__name__)

#: The package that travels with each version.
MODEL = REPOSITORY / "model"


def runs_ours(checkpoint: Path) -> bool:
    """Whether the code of a fetched version does what the repository's does: comments and docstrings aside.

    A version that was registered before versions carried their code is taken for one, with a warning: nothing else
    here can read it.
    """
    if not (checkpoint / CODE).is_dir():
        logger.warning("%s was registered without its code: it is read with today's; register it again", checkpoint)
        return True
    own, ours = _files(checkpoint / CODE), _files(MODEL)
    return own.keys() == ours.keys() and code_digest(own.values()) == code_digest(ours.values())


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.py"))}


def scorer_of(checkpoint: Path) -> Scorer:
    """The scorer of a fetched version, by its own code.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    if runs_ours(checkpoint):
        from model.scorer import Scorer

        return Scorer.from_directory(checkpoint)
    name = own_code(checkpoint)
    errors = import_module(f"{name}.errors")
    try:
        return cast("Scorer", import_module(f"{name}.scorer").Scorer.from_directory(checkpoint))
    except errors.AgentPSError as error:  # of that version's own class
        raise CheckpointError(str(error)) from error
