"""The only file that talks to MLflow's model registry.

Aliases are the truth: `champion` serves, `challenger` is the newest version, `previous` the champion
before. A version's tags say what it was made of and what the gate said of it.
"""

from __future__ import annotations

import base64
import logging
import re
import shutil
import tempfile
import uuid
from importlib.metadata import version as installed_version
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import PyFuncModel
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType
from pydantic import BaseModel, ConfigDict

from model.columns import ERROR, LOGIT, SCORE, answer_column, decision_column, probability_column
from model.errors import CheckpointError, RegistryError, plain
from model.images import INGESTED, ImageLimits, decode, read_source
from model.integrity import MANIFEST, seal, sha256_of
from model.schema import IMAGES, POST_ID, ROOT, SPLIT, TEST, TEXT, TITLE, VIDEO
from model.settings import PostLimits, answers_questions
from model.task import Task
from steps.evaluate.report import EvalReport
from steps.register import pyfunc
from steps.register.manifest import VERSION_MANIFEST, expected_files
from steps.register.own_code import MODEL
from steps.register.pyfunc import CODE
from steps.register.reach import answered, told, turn
from steps.register.stored import CHECKPOINT, FILES, MLMODEL, one_file, stored, whole

logger = logging.getLogger(__name__)

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
_CONTENT, _TASK = "agentps.content", "agentps.task"
#: One for each call of `register`: versions that share it are one, asked for twice.
_ATTEMPT = "agentps.attempt"
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_REPORT, _PREDICTIONS, _PROFILE = "report.json", "predictions.parquet", "profile.parquet"
#: Pixels of the longer side of the image that a version's example holds.
_EXAMPLE = 64
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
#: And where the language model's weights are quantized.
_QUANTIZATION = ("bitsandbytes",)


class RegisteredVersion(BaseModel):
    """A model version as the registry knows it."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    run_id: str | None
    source: str | None


def _signature(task: Task, report: EvalReport) -> ModelSignature:
    """What the scorer takes and gives. Any cell is let in, so that a wrong one costs its own post and no other."""
    optional = [ColSpec(AnyType(), name, required=False) for name in (TITLE, TEXT, POST_ID, VIDEO)]
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.double, name, required=False) for name in (LOGIT, SCORE)]
    outputs += [ColSpec(DataType.boolean, decision_column(key), required=False) for key in report.operating_points]
    if answers_questions(report.variant):
        for id_ in task.question_ids:
            outputs.append(ColSpec(DataType.string, answer_column(id_), required=False))
            outputs.append(ColSpec(DataType.double, probability_column(id_), required=False))
    outputs.append(ColSpec(DataType.string, ERROR, required=False))
    return ModelSignature(inputs=Schema([ColSpec(AnyType(), IMAGES), *optional]), outputs=Schema(outputs))


def example_of(posts: pd.DataFrame) -> pd.DataFrame:
    """One post of the test split with its first image, small, as base64 text: what the pyfunc takes from anybody."""
    post = posts[posts[SPLIT] == TEST].to_dict("records")[0]
    data = read_source(post[IMAGES][0], INGESTED, root=post[ROOT])
    image, small = decode(data, INGESTED, least_side=_EXAMPLE), BytesIO()
    image.thumbnail((_EXAMPLE, _EXAMPLE))
    image.save(small, "JPEG")
    images = [base64.b64encode(small.getvalue()).decode()]
    return pd.DataFrame([{TITLE: post[TITLE], TEXT: post[TEXT], IMAGES: images}])


@answered()
def find_by_content(name: str, content: str) -> RegisteredVersion | None:
    """The version that holds exactly this checkpoint, if it was registered before.

    Where MLflow's client asked for it twice, because the first reply was lost, the second one is removed.
    """
    found = [v for v in versions_of(name, f" and tags.`{_CONTENT}` = '{content}'") if v.status == "READY"]
    for double in found[1:]:
        if double.tags.get(_ATTEMPT, double.version) == found[0].tags.get(_ATTEMPT):
            remove(double)
    return _registered(found[0]) if found else None


def remove(double: ModelVersion) -> None:
    """Delete a version that is there twice; where that is not allowed, it stays, and nobody asks for it."""
    try:
        MlflowClient().delete_model_version(double.name, str(double.version))
    except MlflowException as error:
        logger.warning("model %s version %s is there twice: %s", double.name, double.version, told(error))


@answered()
def versions_of(name: str, condition: str = "") -> list[ModelVersion]:
    """In the order of their numbers."""
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = MlflowClient().search_model_versions(f"name = '{name}'{condition}", page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version))


@answered()
def aliases_of(name: str) -> dict[str, str]:
    try:
        found = MlflowClient().get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code in _MISSING:
            return {}
        raise
    return {alias: str(version) for alias, version in found.items()}


def _registered(version: ModelVersion) -> RegisteredVersion:
    return RegisteredVersion(
        name=version.name, version=str(version.version), run_id=version.run_id, source=version.source
    )


@answered()
def register(
    checkpoint: Path,
    report: EvalReport,
    predictions: pd.DataFrame,
    task: Task,
    example: pd.DataFrame,
    *,
    name: str,
    tags: dict[str, str],
    profile: pd.DataFrame | None = None,
    limits: ImageLimits | None = None,
    post_limits: PostLimits | None = None,
    posts: pd.DataFrame | None = None,
) -> tuple[RegisteredVersion, bool]:
    """Log the checkpoint with its code, operating points, report and predictions as a pyfunc and make it a version.

    The same content is registered once: an interrupted call is finished by the next. The hashes of all files go into
    the version's manifest, whose own hash is a tag: `fetch` holds the files to them. The version's description is its
    model card.

    Args:
        checkpoint: a trained one gets today's code; that of a registered version keeps its own.
        profile: of the training posts (see `steps.retrain.profile`), for `profile_of`.
        limits, post_limits: of the images and posts that were trained on, and so of those that are scored; None: as the
            checkpoint says.
        posts: the table of ingest, for the card; None: the card says nothing of them.

    Returns:
        The version, and whether it is new.

    Raises:
        CheckpointError: the checkpoint holds a pickle, or answers another task.
    """
    from model.checkpoint_info import OperatingPoints, check_task, read_info, write_info, write_operating_points
    from steps.register.card import card

    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "checkpoint"
        shutil.copytree(checkpoint, directory)
        info = read_info(directory)
        check_task(info, task, checkpoint)
        largest = {"limits": limits, "post_limits": post_limits}
        if given := {name: most for name, most in largest.items() if most is not None}:
            write_info(directory, info.model_copy(update=given))
        if not (directory / CODE).exists():
            shutil.copytree(MODEL, directory / CODE, ignore=shutil.ignore_patterns("__pycache__"))
        points = OperatingPoints(calibration=report.calibration, thresholds=report.operating_points)
        write_operating_points(directory, points)
        (directory / _REPORT).write_text(report.model_dump_json(indent=1), encoding="utf-8")
        predictions.to_parquet(directory / _PREDICTIONS, index=False)
        if profile is not None:
            profile.to_parquet(directory / _PROFILE, index=False)
        files = seal(directory)
        ours = {
            _CONTENT: files[MANIFEST],
            _TASK: f"{task.name}:{task.version}:{task.fingerprint}",
            _ATTEMPT: uuid.uuid4().hex,
        }
        known = find_by_content(name, files[MANIFEST])
        if known is None:
            packages = (*_REQUIREMENTS, *_QUANTIZATION) if info.backbone.quantization else _REQUIREMENTS
            described = card(report, predictions, task, info, posts)
            _create(directory, report, task, example, name, packages, {**tags, **ours}, files, described)
    version = known or find_by_content(name, files[MANIFEST])
    if version is None:
        raise RegistryError(f"model {name}: the version that was just registered is not there any more: run again")
    return version, known is None


def _create(
    directory: Path,
    report: EvalReport,
    task: Task,
    example: pd.DataFrame,
    name: str,
    packages: tuple[str, ...],
    tags: dict[str, str],
    sealed: dict[str, str],
    description: str,
) -> None:
    """Args: sealed: the hashes of the files in `directory`. description: the model card."""
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(pyfunc.__file__),
        artifacts={"checkpoint": str(directory)},
        signature=_signature(task, report),
        input_example=example,
        pip_requirements=[f"{package}=={installed_version(package).split('+')[0]}" for package in packages],
    )
    mlflow.log_metrics(report.mlflow_metrics(), model_id=info.model_id)
    ours = {f"{CHECKPOINT}/{file}": digest for file, digest in sealed.items()}
    loader = Path(str(pyfunc.__file__))
    files = stored(info.model_uri, {**ours, loader.name: sha256_of(loader)})
    create_model(name)
    with turn():
        if find_by_content(name, tags[_CONTENT]) is None:  # another process may have been first meanwhile
            MlflowClient().create_model_version(
                name,
                source=info.model_uri,
                run_id=info.run_id,
                tags={**tags, VERSION_MANIFEST: files[FILES]},
                model_id=info.model_id,
                description=description,
            )


def create_model(name: str, description: str | None = None) -> None:
    """Make the registered model, where it is not there.

    Raises:
        MlflowException: any other trouble than that it is there.
    """
    try:
        MlflowClient().create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@answered()
def get(name: str, version: str) -> RegisteredVersion:
    """Raises: RegistryError where there is no such version."""
    if not re.fullmatch("[0-9]{1,9}", version):
        raise RegistryError(f"model {name}: {plain(version):.50} is no version's number: `agentps history` lists them")
    try:
        return _registered(MlflowClient().get_model_version(name, version))
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        raise RegistryError(
            f"model {name}: no version {version} ({error.message}): `agentps history` lists them"
        ) from None


@answered()
def tags_of(version: RegisteredVersion) -> dict[str, str]:
    return dict(MlflowClient().get_model_version(version.name, version.version).tags)


def _expected_files(version: RegisteredVersion) -> dict[str, str]:
    return expected_files(_uri(version), tags_of(version), f"model {version.name} version {version.version}")


def _uri(version: RegisteredVersion) -> str:
    return f"models:/{version.name}/{version.version}"


@answered()
def folder_of(version: RegisteredVersion) -> Path:
    """The version on this machine, as MLflow reads it, once every file was held to the hashes in the version's tags.

    Raises: as `fetch`.
    """
    expected = _expected_files(version)
    if MLMODEL not in expected:
        raise RegistryError(
            f"model {version.name} version {version.version} was registered when only the files of its checkpoint were "
            "hashed: register it again"
        )
    return whole(_uri(version), expected)


def load(version: RegisteredVersion) -> PyFuncModel:
    """As `mlflow.pyfunc.load_model`, of `folder_of`."""
    return mlflow.pyfunc.load_model(str(folder_of(version)))


@answered()
def fetch(version: RegisteredVersion, task: Task | None = None) -> Path:
    """The version's checkpoint on this machine, every file of the version held to the hashes in its tags.

    Args:
        task: where given, the checkpoint must answer this task.

    Raises:
        RegistryError: the version has no hashes, or its files are gone.
        CheckpointError: a file was changed, removed or added; a pickle is there; another task.
    """
    from model.checkpoint_info import check_task, read_info

    directory = whole(_uri(version), _expected_files(version)) / CHECKPOINT
    info = read_info(directory)
    said = tags_of(version).get(_TASK, "").rpartition(":")[2]
    if said != info.task_fingerprint:
        raise CheckpointError(
            f"model {version.name} version {version.version}: its tag {_TASK} says {said or 'nothing'}, its checkpoint "
            f"answers task {info.task.name} {info.task_fingerprint}: put the tag back, or register the checkpoint again"
        )
    if task is not None:
        check_task(info, task, f"model {version.name} version {version.version}")
    return directory


@answered()
def _verified(version: RegisteredVersion, name: str) -> bytes:
    """One file of the checkpoint, held to its hash."""
    file = f"{CHECKPOINT}/{name}"
    return one_file(_uri(version), file, _expected_files(version).get(file))


def report_of(version: RegisteredVersion) -> EvalReport:
    """The report that the version was registered with."""
    return EvalReport.model_validate_json(_verified(version, _REPORT))


def predictions_of(version: RegisteredVersion) -> pd.DataFrame:
    """The predictions table of val and test (see `steps.evaluate.report`) that the report was made of."""
    return pd.read_parquet(BytesIO(_verified(version, _PREDICTIONS)))


def profile_of(version: RegisteredVersion) -> pd.DataFrame | None:
    """The profile of its training posts; None where it was registered without one."""
    if f"{CHECKPOINT}/{_PROFILE}" not in _expected_files(version):
        return None
    return pd.read_parquet(BytesIO(_verified(version, _PROFILE)))


def set_verdict(version: RegisteredVersion, tags: dict[str, Any]) -> None:
    """Raises: RegistryError where the version is no longer there."""
    try:
        for key, value in tags.items():
            MlflowClient().set_model_version_tag(version.name, version.version, key, str(value))
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        raise RegistryError(
            f"model {version.name} version {version.version}: {error}; if it was deleted by hand, register it again: "
            "put `steps: {register: {enable_cache: false}}` into the config"
        ) from error
