"""The only file that talks to MLflow's model registry.

Aliases are the truth: `champion` serves, `challenger` is the newest version, `previous` the champion
before. A version's tags say what it was made of and what the gate said of it.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from importlib.metadata import version as installed_version
from io import BytesIO
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

from model.columns import ERROR, LOGIT, SCORE, answer_column, decision_column, probability_column
from model.errors import CheckpointError, RegistryError
from model.images import INGESTED, ImageLimits, decode, read_source
from model.integrity import MANIFEST, refuse_pickles, seal, sha256_of
from model.post import PostLimits
from model.schema import IMAGES, POST_ID, ROOT, SPLIT, TEST, TEXT, TITLE
from model.settings import answers_questions
from model.task import Task
from steps.evaluate.report import EvalReport
from steps.register import pyfunc
from steps.register.own_code import MODEL
from steps.register.pyfunc import CODE, differences

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
_CONTENT, _FILES, _TASK = "agentps.content", "agentps.files", "agentps.task"
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
    optional = [ColSpec(AnyType(), name, required=False) for name in (TITLE, TEXT, POST_ID)]
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


def find_by_content(name: str, content: str) -> RegisteredVersion | None:
    """The version that holds exactly this checkpoint, if it was registered before."""
    try:
        found = MlflowClient().search_model_versions(f"name = '{name}' and tags.`{_CONTENT}` = '{content}'")
    except MlflowException as error:
        raise RegistryError(f"registry {mlflow.get_registry_uri()}: {error}") from error
    ready = sorted((int(v.version), v) for v in found if v.status == "READY")
    return _registered(ready[0][1]) if ready else None


def _registered(version: ModelVersion) -> RegisteredVersion:
    return RegisteredVersion(
        name=version.name, version=str(version.version), run_id=version.run_id, source=version.source
    )


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
) -> tuple[RegisteredVersion, bool]:
    """Log the checkpoint with its code, operating points, report and predictions as a pyfunc and make it a version.

    The same content is registered once: an interrupted call is finished by the next. The hashes of
    all files go into the version's tags, and are what `fetch` holds the files to.

    Args:
        checkpoint: a trained one gets today's code; that of a registered version keeps its own.
        profile: of the training posts (see `steps.retrain.profile`), for `profile_of`.
        limits, post_limits: of the images and posts that were trained on, and so of those that are scored; None: as the
            checkpoint says.

    Returns:
        The version, and whether it is new.

    Raises:
        CheckpointError: the checkpoint holds a pickle, or answers another task.
    """
    from model.checkpoint import OperatingPoints, check_task, read_info, write_info, write_operating_points

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
            _FILES: json.dumps(files, sort_keys=True),
            _TASK: f"{task.name}:{task.version}:{task.fingerprint}",
        }
        known = find_by_content(name, files[MANIFEST])
        packages = (*_REQUIREMENTS, *_QUANTIZATION) if info.backbone.quantization else _REQUIREMENTS
        version = known or _create(directory, report, task, example, name, packages, {**tags, **ours})
    return version, known is None


def _create(
    directory: Path,
    report: EvalReport,
    task: Task,
    example: pd.DataFrame,
    name: str,
    packages: tuple[str, ...],
    tags: dict[str, str],
) -> RegisteredVersion:
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(pyfunc.__file__),
        artifacts={"checkpoint": str(directory)},
        signature=_signature(task, report),
        input_example=example,
        pip_requirements=[f"{package}=={installed_version(package).split('+')[0]}" for package in packages],
    )
    mlflow.log_metrics(report.mlflow_metrics(), model_id=info.model_id)
    try:
        create_model(name)
    except MlflowException as error:
        raise RegistryError(f"model {name}: {error}") from error
    created = MlflowClient().create_model_version(
        name, source=info.model_uri, run_id=info.run_id, tags=tags, model_id=info.model_id
    )
    return _registered(created)


def create_model(name: str, description: str | None = None) -> None:
    """Make the registered model, where it is not there."""
    try:
        MlflowClient().create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def get(name: str, version: str) -> RegisteredVersion:
    """Raises: RegistryError where there is no such version."""
    try:
        return _registered(MlflowClient().get_model_version(name, version))
    except MlflowException as error:
        raise RegistryError(
            f"model {name}: no version {version} ({error.message}): `agentps history` lists them"
        ) from None


def tags_of(version: RegisteredVersion) -> dict[str, str]:
    return dict(MlflowClient().get_model_version(version.name, version.version).tags)


def _expected_files(version: RegisteredVersion) -> dict[str, str]:
    tag = tags_of(version).get(_FILES)
    if tag is None:
        raise RegistryError(
            f"model {version.name} version {version.version}: no tag {_FILES} with the hashes of its files: it was "
            f"not registered by this pipeline; move the alias `{CHAMPION}` to a version that was"
        )
    return dict(json.loads(tag))


def _download(version: RegisteredVersion, part: str) -> Path:
    uri = f"models:/{version.name}/{version.version}/artifacts/checkpoint{part}"
    try:
        return Path(mlflow.artifacts.download_artifacts(uri))
    except (MlflowException, OSError) as error:
        raise RegistryError(f"model {version.name} version {version.version}: {uri} cannot be read: {error}") from error


def fetch(version: RegisteredVersion, task: Task | None = None) -> Path:
    """The version's checkpoint on this machine, every file of it held to the hashes in the version's tags.

    Args:
        task: where given, the checkpoint must answer this task.

    Raises:
        RegistryError: the version has no hashes, or its files are gone.
        CheckpointError: a file was changed, removed or added; a pickle is there; another task.
    """
    from model.checkpoint import check_task, read_info

    directory = _download(version, "")
    refuse_pickles(directory)
    if found := differences(directory, _expected_files(version)):
        raise CheckpointError(
            f"{directory}: not the checkpoint that was registered: {'; '.join(found)}: restore its files, or register "
            "it again from the run that made it"
        )
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


def _verified_file(version: RegisteredVersion, name: str) -> Path:
    """One file of the checkpoint, held to its hash."""
    expected = _expected_files(version).get(name)
    path = _download(version, f"/{name}")
    if sha256_of(path) != expected:
        raise CheckpointError(
            f"model {version.name} version {version.version}: {name} has sha256 {sha256_of(path)[:12]}…, "
            f"{(expected or 'none')[:12]}… was registered: restore the file, or register the checkpoint again"
        )
    return path


def report_of(version: RegisteredVersion) -> EvalReport:
    """The report that the version was registered with."""
    return EvalReport.model_validate_json(_verified_file(version, _REPORT).read_text(encoding="utf-8"))


def predictions_of(version: RegisteredVersion) -> pd.DataFrame:
    """The predictions table of val and test (see `steps.evaluate.report`) that the report was made of."""
    return pd.read_parquet(_verified_file(version, _PREDICTIONS))


def profile_of(version: RegisteredVersion) -> pd.DataFrame | None:
    """The profile of its training posts; None where it was registered without one."""
    if _PROFILE not in _expected_files(version):
        return None
    return pd.read_parquet(_verified_file(version, _PROFILE))


def set_verdict(version: RegisteredVersion, tags: dict[str, Any]) -> None:
    """Raises: RegistryError where the version is no longer there."""
    try:
        for key, value in tags.items():
            MlflowClient().set_model_version_tag(version.name, version.version, key, str(value))
    except MlflowException as error:
        raise RegistryError(
            f"model {version.name} version {version.version}: {error}; if it was deleted by hand, register it again: "
            "put `steps: {register: {enable_cache: false}}` into the config"
        ) from error
