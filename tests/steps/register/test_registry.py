"""Against a real MLflow on SQLite, and a scorer in a fresh process that has nothing of this repository."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from model.checkpoint import load
from model.checkpoint_info import OperatingPoints
from model.errors import CheckpointError, RegistryError
from model.integrity import hashes, seal
from model.metrics import Calibration, OperatingPoint
from model.scorer import Scorer
from model.settings import BackboneSettings, LoraSettings, Variant
from steps.evaluate.report import EvalReport, Metric
from steps.register import registry
from tests.support.reports import made_up
from tests.support.tiny import TASK, train_settings, write_checkpoint, write_images

NAME = "agentps-small"
POINTS = {
    "p60": OperatingPoint(min_precision=0.6, threshold=0.5, recall=0.5, precision=0.7),
    "p80": OperatingPoint(min_precision=0.8, threshold=math.inf, recall=0, precision=None),
}


def report(variant: Variant = "agentps_answers", f1: float = 0.75) -> EvalReport:
    metrics = {"f1": Metric(value=f1, low=0.5, high=0.9), "roc_auc": Metric(value=None)}
    calibration = Calibration(scale=1.5, bias=-0.25)
    return made_up(variant=variant, metrics=metrics, operating_points=POINTS, calibration=calibration)


PREDICTIONS = pd.DataFrame({"post_id": ["a", "b"], "split": "test", "label": pd.array([0, None], dtype="Int8")})


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    paths = [str(path) for path in write_images(tmp_path_factory.mktemp("images"), 5)]
    return pd.DataFrame(
        {"title": ["a walk", "今天 🙂", ""], "text": ["", "#tag", "sea"], "images": [paths[:1], paths[:4], paths[3:]]}
    )


def write(directory: Path, backbone: BackboneSettings, variant: Variant = "agentps_answers", seed: int = 0) -> Path:
    return write_checkpoint(
        directory / f"checkpoint-{variant}-{seed}", backbone, train_settings(variant=variant, seed=seed)
    )


def register(
    checkpoint: Path, posts: pd.DataFrame, made: EvalReport | None = None
) -> tuple[registry.RegisteredVersion, bool]:
    return registry.register(
        checkpoint, made or report(), PREDICTIONS, TASK, posts.iloc[:1], name=NAME, tags={"agentps.data": "abc"}
    )


def test_what_is_registered_comes_back_and_is_registered_once(
    tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame
) -> None:
    client = MlflowClient()
    checkpoint = write(tracking, tiny_backbone)
    first, is_new = register(checkpoint, posts)
    assert (first.version, is_new) == ("1", True)
    assert client.get_model_version(NAME, "1").tags["agentps.data"] == "abc"
    assert registry.get(NAME, "1") == first
    with pytest.raises(RegistryError, match="no version 7"):
        registry.get(NAME, "7")
    for word in ("champion", "1\n2", "9" * 5000, "1/../2"):
        with pytest.raises(RegistryError, match="is no version's number: `agentps history` lists them") as caught:
            registry.get(NAME, word)
        assert len(str(caught.value).splitlines()[0]) < 200
        assert "\n" not in str(caught.value)
    assert registry.report_of(first) == report(), "as it was written, its threshold of inf too"
    pd.testing.assert_frame_equal(registry.predictions_of(first), PREDICTIONS, check_dtype=False)

    again, is_new = register(checkpoint, posts)
    assert (again.version, is_new) == ("1", False)
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1
    second, is_new = register(write(tracking, tiny_backbone, seed=1), posts, report(f1=0.8))
    assert (second.version, is_new) == ("2", True)
    back, is_new = register(checkpoint, posts)
    assert (back.version, is_new) == ("1", False)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_version_asks_for_the_library_of_weights_in_4_bits_where_it_has_them(
    tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame, quantization: str | None
) -> None:
    backbone = tiny_backbone.model_copy(update={"quantization": quantization})
    settings = train_settings(variant="agentps_answers", lora=LoraSettings(rank=4, alpha=8))
    version, _ = register(write_checkpoint(tracking / "checkpoint", backbone, settings), posts)
    needed = Path(mlflow.pyfunc.get_model_dependencies(version.source)).read_text(encoding="utf-8")
    assert ("bitsandbytes==" in needed) == (quantization is not None)


def with_hashes_in_a_tag(version: registry.RegisteredVersion, files: dict[str, str] | str) -> None:
    """Make it one that was registered before versions had a manifest."""
    client = MlflowClient()
    client.delete_model_version_tag(version.name, version.version, "agentps.manifest")
    text = files if isinstance(files, str) else json.dumps(files)
    client.set_model_version_tag(version.name, version.version, "agentps.files", text)


def test_a_version_s_hashes_are_in_its_manifest_and_one_hash_of_that_in_its_tags(
    tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame
) -> None:
    version, _ = register(write(tracking, tiny_backbone), posts)
    folder = registry.fetch(version).parent.parent
    tags, manifest = registry.tags_of(version), folder / "files.json"
    assert tags["agentps.manifest"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert max(map(len, tags.values())) <= 64, "no page of JSON among the tags"
    listed = json.loads(manifest.read_text(encoding="utf-8"))
    assert listed == {file: digest for file, digest in hashes(folder).items() if file != "files.json"}

    before = manifest.read_text(encoding="utf-8")
    listed["pyfunc.py"] = "0" * 64
    manifest.write_text(json.dumps(listed), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"files\.json has sha256 .* was registered"):
        registry.fetch(version)
    manifest.write_text(before, encoding="utf-8")
    assert registry.fetch(version)


def test_a_version_with_its_hashes_in_a_tag_as_before_there_were_manifests_is_read_and_run(
    tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame
) -> None:
    version, _ = register(write(tracking, tiny_backbone), posts)
    folder = registry.fetch(version).parent.parent
    (folder / "files.json").unlink()
    with_hashes_in_a_tag(version, hashes(folder))
    assert registry.report_of(version) == report()
    assert len(registry.load(version).predict(posts)) == 3
    flip_one_bit(registry.fetch(version))
    with pytest.raises(CheckpointError, match=r"trained\.safetensors has sha256"):
        registry.fetch(version)


def test_two_runs_that_register_the_same_at_once_make_one_version(
    tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, stored = write(tracking, tiny_backbone), registry.stored

    def meanwhile(uri: str, ours: dict[str, str]) -> dict[str, str]:
        monkeypatch.setattr(registry, "stored", stored)
        assert register(checkpoint, posts)[0].version == "1"
        return stored(uri, ours)

    monkeypatch.setattr(registry, "stored", meanwhile)
    assert register(checkpoint, posts)[0].version == "1"
    assert [str(version.version) for version in registry.versions_of(NAME)] == ["1"]


def flip_one_bit(directory: Path) -> None:
    path = directory / "trained.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def change_code(directory: Path) -> None:
    path = directory / "code" / "model" / "text.py"
    path.write_bytes(path.read_bytes() + b"#")


def other_report(directory: Path) -> None:
    path = directory / "report.json"
    path.write_text(path.read_text().replace("0.75", "0.95"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_one_bit, r"trained\.safetensors has sha256 \w{12}…, \w{12}… was registered"),
        (lambda d: (d / "adapter.pt").write_bytes(b"x"), r"adapter\.pt: a pickle"),
        (lambda d: (d / "tokenizer" / "tokenizer.json").unlink(), r"tokenizer/tokenizer\.json is missing"),
        (other_report, r"report\.json has sha256"),
        (change_code, r"code/model/text\.py has sha256"),
        (lambda d: (d / "code" / "model" / "more.py").write_text(""), r"code/model/more\.py was added"),
    ],
    ids=["one bit", "a pickle", "a file less", "the report", "the code", "more code"],
)
def test_a_version_whose_files_were_changed_is_refused_by_the_registry_and_by_the_pyfunc(
    tracking: Path,
    tiny_backbone: BackboneSettings,
    posts: pd.DataFrame,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    version, _ = register(write(tracking, tiny_backbone), posts)
    directory = registry.fetch(version, TASK)
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    assert len(model.predict(posts)) == 3
    damage(directory)
    with pytest.raises(CheckpointError, match=message):
        registry.fetch(version)
    with pytest.raises(MlflowException, match=r"not the checkpoint that was registered: .*(sha256|missing|added)"):
        mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    if damage is other_report:
        with pytest.raises(CheckpointError, match=message):
            registry.report_of(version)


def run_more(version: Path) -> None:
    """Code of a stranger in the file that MLflow runs; the manifest knows nothing of it."""
    path = version / "pyfunc.py"
    path.write_text(f"open({str(version.parent / 'ran')!r}, 'w')\n" + path.read_text())


def reseal(version: Path) -> None:
    """Other code, and a manifest that was made anew: to plain MLflow all is well."""
    checkpoint = version / "artifacts" / "checkpoint"
    path = checkpoint / "code" / "model" / "__init__.py"
    path.write_text(f"open({str(version.parent / 'ran')!r}, 'w')\n" + path.read_text())
    seal(checkpoint)


def link(version: Path) -> None:
    (version.parent / "elsewhere").mkdir()
    (version / "code").symlink_to(version.parent / "elsewhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (run_more, r"pyfunc\.py has sha256"),
        (reseal, r"artifacts/checkpoint/code/model/__init__\.py has sha256"),
        (lambda v: (v / "MLmodel").write_text((v / "MLmodel").read_text() + "#"), r"MLmodel has sha256"),
        (lambda v: (v / "requirements.txt").write_text("stranger==1"), r"requirements\.txt has sha256"),
        (lambda v: (v / "conda.yaml").unlink(), r"conda\.yaml is missing"),
        (lambda v: (v / "sitecustomize.py").write_text(""), r"sitecustomize\.py was added"),
        (lambda v: (v / "manifest.json").write_text("{}"), r"manifest\.json was added"),
        (lambda v: (v / "python_model.pkl").write_bytes(b"x"), r"python_model\.pkl: a pickle"),
        (lambda v: (v / "notes").write_bytes(pickle.dumps([1])), r"notes: a pickle"),
        (link, r"code is a link, or no file"),
    ],
    ids=[
        "pyfunc.py",
        "own code",
        "MLmodel",
        "requirements",
        "a file less",
        "code",
        "a manifest",
        "pkl",
        "pickle",
        "link",
    ],
)
def test_whatever_else_of_a_version_was_changed_the_registry_refuses_it_before_any_code_runs(
    tracking: Path,
    tiny_backbone: BackboneSettings,
    posts: pd.DataFrame,
    change: Callable[[Path], object],
    message: str,
) -> None:
    version, _ = register(write(tracking, tiny_backbone), posts)
    folder = registry.fetch(version).parent.parent
    mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    assert (folder / "registered_model_meta").exists(), "MLflow's own trace of having read it"
    assert len(registry.load(version).predict(posts)) == 3
    moved = folder.rename(folder.parent / "elsewhere-on-a-large-disk")
    folder.symlink_to(moved)
    assert len(registry.load(version).predict(posts)) == 3
    folder.unlink()
    moved.rename(folder)
    change(folder)
    for read in (registry.fetch, registry.load):
        with pytest.raises(CheckpointError, match=message):
            read(version)
    assert not (folder.parent / "ran").exists()


def test_a_version_of_before_all_files_were_hashed_is_fetched_but_not_run_by_the_file_that_was_not(
    tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame
) -> None:
    version, _ = register(write(tracking, tiny_backbone), posts)
    directory = registry.fetch(version)
    with_hashes_in_a_tag(version, hashes(directory))
    assert registry.fetch(version) == directory
    assert registry.report_of(version) == report()
    assert registry.profile_of(version) is None
    with pytest.raises(RegistryError, match="only the files of its checkpoint were hashed: register it again"):
        registry.load(version)
    flip_one_bit(directory)
    with pytest.raises(CheckpointError, match=r"trained\.safetensors has sha256"):
        registry.fetch(version)


def test_a_version_of_another_task_is_refused_with_what_differs(
    tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame
) -> None:
    version, _ = register(write(tracking, tiny_backbone), posts)
    questions = (TASK.questions[0].model_copy(update={"ask": "Is it light?"}), *TASK.questions[1:])
    other = TASK.model_copy(update={"questions": questions})
    with pytest.raises(
        CheckpointError, match=r"version 1: .*questions\.bright\.ask: 'Bright\?', expected 'Is it light\?'"
    ):
        registry.fetch(version, other)
    with pytest.raises(CheckpointError, match=r"questions\.bright\.ask"):
        registry.register(
            write(tracking, tiny_backbone, seed=2), report(), PREDICTIONS, other, posts.iloc[:1], name=NAME, tags={}
        )
    MlflowClient().set_model_version_tag(NAME, "1", "agentps.task", f"small:1:{other.fingerprint}")
    with pytest.raises(
        CheckpointError, match=rf"its tag agentps\.task says {other.fingerprint}, its checkpoint answers"
    ):
        registry.fetch(version)


def test_the_same_weights_with_other_thresholds_are_another_version(
    tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame
) -> None:
    checkpoint = write(tracking, tiny_backbone)
    register(checkpoint, posts)
    changed = report().model_copy(update={"operating_points": {"p60": POINTS["p60"]}})
    version, is_new = register(checkpoint, posts, changed)
    assert (version.version, is_new) == ("2", True)


def test_a_champion_that_this_pipeline_did_not_write_cannot_be_compared_with(tracking: Path) -> None:
    class Other(mlflow.pyfunc.PythonModel):
        def predict(self, context: object, model_input: pd.DataFrame) -> pd.DataFrame:
            return model_input

    info = mlflow.pyfunc.log_model(name="other", python_model=Other(), pip_requirements=[])
    mlflow.register_model(info.model_uri, NAME)
    with pytest.raises(RegistryError, match=r"version 1: no tag agentps\.manifest .*move the alias `champion`"):
        registry.report_of(registry.get(NAME, "1"))


_SCORE = """
import pickle, sys
import mlflow
uri, names, source, target = sys.argv[1:]
mlflow.set_tracking_uri(uri)
frames = pickle.load(open(source, "rb"))
tables = {}
for name in names.split(","):
    model = mlflow.pyfunc.load_model(f"models:/{name}@challenger")
    tables[name] = [model.predict(frame) for frame in frames]
own = [name for name in sys.modules if name.startswith("agentps_model_") and name.endswith(".scorer")]
code = {name: sys.modules[name].__file__ for name in own}
with open(target, "wb") as file:
    pickle.dump((code, "model" in sys.modules, tables), file)
"""


def test_a_registered_version_scores_the_same_in_a_fresh_process_elsewhere(
    tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame
) -> None:
    """Paths and bytes; a variant with answers, one of them of three classes, and one without."""
    variants: dict[str, Variant] = {"with-answers": "agentps_answers", "without": "vanilla"}
    points = OperatingPoints(calibration=report().calibration, thresholds=POINTS)
    expected: dict[str, pd.DataFrame] = {}
    for name, variant in variants.items():
        checkpoint = write(tracking, tiny_backbone, variant)
        registry.register(checkpoint, report(variant), PREDICTIONS, TASK, posts.iloc[:1], name=name, tags={})
        MlflowClient().set_registered_model_alias(name, "challenger", "1")
        expected[name] = Scorer(load(checkpoint), points, image_root="/").score(posts)
        signature = mlflow.models.get_model_info(f"models:/{name}@challenger").signature
        assert [column.name for column in signature.outputs] == expected[name].columns.tolist()
    assert "probability_kind" in expected["with-answers"]
    assert expected["without"].columns.tolist() == ["logit", "score", "decision_p60", "decision_p80", "error"]

    as_bytes = posts.assign(images=[[Path(path).read_bytes() for path in album] for album in posts["images"]])
    elsewhere = tracking / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "posts.pickle").write_bytes(pickle.dumps([posts, as_bytes]))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [mlflow.get_tracking_uri(), ",".join(variants), "posts.pickle", "tables.pickle"]
    process = subprocess.run(
        [sys.executable, "-c", _SCORE, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert "type hint" not in process.stderr
    code, has_model, tables = pickle.loads((elsewhere / "tables.pickle").read_bytes())
    (name, file), *others = code.items()
    assert re.fullmatch(r"agentps_model_[0-9a-f]{16}\.scorer", name), "under a name of its own"
    assert str(tracking / "artifacts") in file, "the code that travels with the version is the code that scores"
    assert others == [], "both versions have the same code"
    assert not has_model
    for name, found in tables.items():
        assert np.ptp(expected[name]["score"]) > 0.005, "the posts must differ, or nothing is compared"
        for table in found:
            pd.testing.assert_frame_equal(table, expected[name], check_dtype=False, rtol=0, atol=1e-5)
