"""The only file that talks to MLflow's model registry.

Aliases are the truth: `champion` serves, `challenger` is the newest version, `previous` the champion
before. A version's tags say what it was made of and what the gate said of it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType
from pydantic import BaseModel, ConfigDict

from model.checkpoint import OperatingPoints, write_operating_points
from model.errors import RegistryError
from model.schema import IMAGES, TEXT, TITLE
from model.settings import answers_questions
from model.task import Task
from steps.evaluate.report import EvalReport
from steps.settings import REPOSITORY

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
_CONTENT, _REPORT = "agentps.content", "report.json"
#: What a fresh process needs to score; pinned to what is installed here.
_REQUIREMENTS = (
    "mlflow",
    "numpy",
    "pandas",
    "peft",
    "pillow",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "scikit-learn",
    "torch",
    "transformers",
)


class RegisteredVersion(BaseModel):
    """A model version as the registry knows it."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    run_id: str | None
    source: str | None


def _client() -> MlflowClient:
    return MlflowClient()


def _content_hash(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(directory)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _signature(task: Task, report: EvalReport) -> ModelSignature:
    """`images` is a list of paths or of bytes: MLflow's AnyType, as no column type of its own is both."""
    inputs = Schema([ColSpec(DataType.string, TITLE), ColSpec(DataType.string, TEXT), ColSpec(AnyType(), IMAGES)])
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.double, "score")]
    outputs += [ColSpec(DataType.boolean, f"decision_{key}") for key in report.operating_points]
    if answers_questions(report.variant):
        for question in task.questions:
            if len(question.classes) == 2:
                outputs.append(ColSpec(DataType.double, f"answer_{question.id}"))
            else:
                outputs.append(ColSpec(DataType.string, f"answer_{question.id}"))
                outputs.append(ColSpec(DataType.double, f"answer_{question.id}_probability"))
    return ModelSignature(inputs=inputs, outputs=Schema(outputs))


def find_by_content(name: str, content: str) -> RegisteredVersion | None:
    """The version that holds exactly this checkpoint, if it was registered before."""
    try:
        found = _client().search_model_versions(f"name = '{name}' and tags.`{_CONTENT}` = '{content}'")
    except MlflowException as error:
        raise RegistryError(f"registry {mlflow.get_registry_uri()}: {error}") from error
    ready = sorted((int(v.version), v) for v in found if v.status == "READY")
    return _registered(ready[0][1]) if ready else None


def _registered(version: ModelVersion) -> RegisteredVersion:
    return RegisteredVersion(
        name=version.name, version=str(version.version), run_id=version.run_id, source=version.source
    )


def register(
    checkpoint: Path, report: EvalReport, task: Task, example: pd.DataFrame, *, name: str, tags: dict[str, str]
) -> tuple[RegisteredVersion, bool]:
    """Log the checkpoint with its operating points as a pyfunc and make it a version, alias `challenger`.

    The same content is registered once: an interrupted call is finished by the next.

    Returns:
        The version, and whether it is new.
    """
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "checkpoint"
        shutil.copytree(checkpoint, directory)
        points = OperatingPoints(calibration=report.calibration, thresholds=report.operating_points)
        write_operating_points(directory, points)
        (directory / _REPORT).write_text(report.model_dump_json(indent=1), encoding="utf-8")
        content = _content_hash(directory)
        known = find_by_content(name, content)
        version = known or _create(directory, report, task, example, name, {**tags, _CONTENT: content})
    _client().set_registered_model_alias(name, CHALLENGER, version.version)
    return version, known is None


def _create(
    directory: Path, report: EvalReport, task: Task, example: pd.DataFrame, name: str, tags: dict[str, str]
) -> RegisteredVersion:
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(REPOSITORY / "steps" / "register" / "pyfunc.py"),
        artifacts={"checkpoint": str(directory)},
        code_paths=[str(REPOSITORY / "model")],
        signature=_signature(task, report),
        input_example=example,
        pip_requirements=[f"{package}=={installed_version(package).split('+')[0]}" for package in _REQUIREMENTS],
    )
    mlflow.log_metrics(report.mlflow_metrics(), model_id=info.model_id)
    client = _client()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise RegistryError(f"model {name}: {error}") from error
    created = client.create_model_version(
        name, source=info.model_uri, run_id=info.run_id, tags=tags, model_id=info.model_id
    )
    return _registered(created)


def champion(name: str) -> tuple[RegisteredVersion, EvalReport] | None:
    """The version behind `champion` with the report that it was promoted on; None before the first promotion.

    Raises:
        RegistryError: the champion has no report of ours, so nothing can be compared with it.
    """
    try:
        version = _client().get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise RegistryError(f"model {name}: {error}") from error
    registered = _registered(version)
    try:
        path = mlflow.artifacts.download_artifacts(f"models:/{name}/{version.version}/artifacts/checkpoint/{_REPORT}")
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"model {name} version {version.version}: no {_REPORT} in it ({error}); it was not registered by this "
            f"pipeline: move the alias `{CHAMPION}` to a version that was"
        ) from error
    return registered, EvalReport.model_validate_json(Path(path).read_text(encoding="utf-8"))


def set_verdict(version: RegisteredVersion, tags: dict[str, Any]) -> None:
    """Raises: RegistryError where the version is no longer there."""
    try:
        for key, value in tags.items():
            _client().set_model_version_tag(version.name, version.version, key, str(value))
    except MlflowException as error:
        raise RegistryError(
            f"model {version.name} version {version.version}: {error}; if it was deleted by hand, register it again: "
            "put `steps: {register: {enable_cache: false}}` into the config"
        ) from error


def promote(version: RegisteredVersion, replaced: RegisteredVersion | None) -> None:
    """Point `champion` at `version`; the version that it replaces becomes `previous`."""
    client = _client()
    if replaced is not None:
        client.set_registered_model_alias(version.name, PREVIOUS, replaced.version)
    client.set_registered_model_alias(version.name, CHAMPION, version.version)
