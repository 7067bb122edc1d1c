"""What follows MLflow's aliases: the copy for production, and ZenML's stages as a mirror of them.

`champion` is production, `challenger` is staging.

MLflow is written first and is the truth; this is called after it, on every run, and sets what differs.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from uuid import UUID

from zenml.client import Client
from zenml.enums import ModelStages
from zenml.exceptions import EntityExistsError
from zenml.models import ModelVersionResponse

from steps.register.history import foreseen, publish, sync
from steps.register.moves import RegistryState
from steps.register.reach import NotAllowedError
from steps.register.registry import CHALLENGER, CHAMPION

logger = logging.getLogger(__name__)

_STAGES = {CHALLENGER: ModelStages.STAGING, CHAMPION: ModelStages.PRODUCTION}


def spread(state: RegistryState, target: str | None) -> None:
    """Copy the champion to the registered model `target`, where one is named, and set ZenML's stages."""
    if target is not None:
        publish(state.name, target)
    mirror(state)


def shown(name: str, target: str | None) -> RegistryState:
    """The state after `sync` and `spread`; who may only read gets the same state, and nothing is written."""
    try:
        state = sync(name)
        spread(state, target)
        return state
    except NotAllowedError as refused:
        state = foreseen(name)
        logger.warning("%s. So what is not finished, or was moved by hand, is left to others", refused)
        return state


def mirror(state: RegistryState) -> None:
    """A ZenML model of the same name with versions `mlflow-<number>`, its stages as the aliases are."""
    client = Client()
    wanted = {alias: state.aliases[alias] for alias in _STAGES if alias in state.aliases}
    if wanted.get(CHALLENGER) == wanted.get(CHAMPION):
        wanted.pop(CHALLENGER, None)  # a version has one stage
    if not wanted:
        return
    with suppress(EntityExistsError):
        client.create_model(state.name, save_models_to_registry=False)
    model = client.get_model(state.name).id
    stages = {stage.value: alias for alias, stage in _STAGES.items()}
    for held in client.list_model_versions(model=model, size=1000).items:
        if held.stage in stages and held.name != _name(wanted.get(stages[held.stage])):
            held.set_stage(ModelStages.ARCHIVED, force=True)  # ZenML minds a second archived one
    for alias, version in wanted.items():
        found = _version(client, model, version)
        if found.stage != _STAGES[alias].value:
            found.set_stage(_STAGES[alias])


def _name(version: str | None) -> str:
    return f"mlflow-{version}"  # ZenML numbers versions itself, and takes no number for a name


def _version(client: Client, model: UUID, version: str) -> ModelVersionResponse:
    try:
        return client.create_model_version(model, name=_name(version))
    except EntityExistsError:
        return client.get_model_version(model, _name(version))
