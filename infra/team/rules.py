"""What MLflow's own login lets anybody do, and a team's server does not: `authorization_function` of its auth.ini.

MLflow's login lets every user make a registered model, who then has all rights on it; and it takes a version's source,
or an experiment's place of artifacts, in any bucket, from which the server would read with its own key; and who may
write into a model may give it another name. Here a model is made by an admin, or by a user who was given `EDIT` or
`MANAGE` on its name before; it is renamed by an admin; and all files go through the server.
"""

from __future__ import annotations

from typing import cast
from urllib.parse import urlsplit

from flask import Response, g, make_response, request
from mlflow.protos.model_registry_pb2 import CreateModelVersion, CreateRegisteredModel
from mlflow.protos.service_pb2 import CreateExperiment
from mlflow.server import auth
from mlflow.server.handlers import _get_request_message
from werkzeug.datastructures import Authorization

#: MLflow's own addresses of what went through the server; and a record of the history, which has no files.
_SOURCES = ("mlflow-artifacts", "runs", "models", "agentps-history")


def authenticate() -> Authorization | Response:
    """Who asks, by user name and password; or the answer that refuses.

    MLflow calls it several times for one request. A password's hash is slow on purpose: it is compared once.
    """
    if (known := g.get("agentps_user")) is not None:
        return cast("Authorization", known)
    found = auth.authenticate_request_basic_auth()
    if isinstance(found, Response):
        return found
    g.agentps_user = found  # what follows asks MLflow, which calls this function again
    why = _refused(str(found.username))
    return found if why is None else make_response(f"Permission denied: {why}\n", 403)


def _refused(username: str) -> str | None:
    """Why the request is refused whatever MLflow says of it; None: MLflow decides."""
    if request.path.endswith("/registered-models/rename"):  # the others would lose its champion and its history
        return None if _is_admin(username) else "an admin renames a model"
    validator = auth._find_validator(request)
    if validator is auth.validate_can_create_experiment:
        return _foreign(_get_request_message(CreateExperiment()).artifact_location)
    if validator is auth.validate_can_create_model_version:
        return _foreign(_get_request_message(CreateModelVersion()).source)
    if validator is auth.validate_can_create_registered_model:
        name = _get_request_message(CreateRegisteredModel()).name
        if _is_admin(username) or auth._get_registered_model_permission(name).can_update:
            return None
        return f"an admin gives the right to the model {name} first (docs/team.md)"
    return None


def _is_admin(username: str) -> bool:
    return bool(auth.store.get_user(username).is_admin)


def _foreign(address: str) -> str | None:
    parts = urlsplit(address)
    if not address or (parts.scheme in _SOURCES and not parts.netloc):  # a client would log in to that host
        return None
    return f"files go through this server: {_SOURCES[0]}:/ is expected"
