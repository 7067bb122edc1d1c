"""A registered version as MLflow loads it: by its own code, from any kind of request."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from model.integrity import MANIFEST, hashes, seal
from model.scorer import Scorer
from model.settings import BackboneSettings
from steps.register import own_code, registry
from steps.register.pyfunc import CODE, differences
from tests.steps.register.test_registry import NAME, PREDICTIONS, flip_one_bit, report
from tests.support.posts import ingested
from tests.support.tiny import TASK, train_settings, write_checkpoint, write_images


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    paths = [str(path) for path in write_images(tmp_path_factory.mktemp("images"), 3)]
    return pd.DataFrame(
        {"title": ["a walk", "sea", ""], "text": ["along the sea", "", "#tag"], "images": [paths[:1], paths, paths[1:]]}
    )


def altered(folder: Path) -> Path:
    """A copy of `model/` that reads texts in another order and pixels at another level."""
    shutil.copytree(own_code.MODEL, folder / "model", ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in (
        ("text.py", "{title}\\n{text}\\n", "{text}\\n{title}\\n"),
        ("family.py", "sub_(shift)", "sub_(shift / 2)"),
    ):
        path = folder / "model" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    return folder / "model"


Register = Callable[..., registry.RegisteredVersion]


@pytest.fixture
def register(
    tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> Register:
    """Registers one checkpoint, with today's code or with that of a folder."""
    checkpoint = write_checkpoint(tracking / "checkpoint", tiny_backbone, train_settings(variant="agentps_answers"))

    def call(code: Path = own_code.MODEL) -> registry.RegisteredVersion:
        with monkeypatch.context() as patch:
            patch.setattr(registry, "MODEL", code)
            return registry.register(checkpoint, report(), PREDICTIONS, TASK, posts.iloc[:1], name=NAME, tags={})[0]

    return call


_BOTH = """
import json, pickle, sys
import mlflow
import model as application  # the application's own module of that name
uri, posts, *versions = sys.argv[1:]
mlflow.set_tracking_uri(uri)
frame = pickle.load(open(posts, "rb"))
models = {version: mlflow.pyfunc.load_model(f"models:/agentps-small/{version}") for version in versions}
scores = {version: loaded.predict(frame)["score"].tolist() for version, loaded in models.items()}
print(json.dumps({"scores": scores, "application": application.OWN, "same": sys.modules["model"] is application}))
"""


def test_each_version_is_scored_by_its_own_code_whatever_else_the_process_has_imported(
    register: Register, tracking: Path, posts: pd.DataFrame
) -> None:
    first, second = register(), register(altered(tracking / "altered"))
    assert (first.version, second.version) == ("1", "2"), "other code is another version"
    elsewhere = tracking / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.py").write_text("OWN = 7\n")
    (elsewhere / "posts.pickle").write_bytes(pickle.dumps(posts))
    environment = os.environ | {"PYTHONPATH": str(elsewhere)}
    found = {}
    for order in ("12", "21"):
        process = subprocess.run(
            [sys.executable, "-c", _BOTH, mlflow.get_tracking_uri(), "posts.pickle", *order],
            cwd=elsewhere, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        found[order] = json.loads(process.stdout.splitlines()[-1])
        assert (found[order]["application"], found[order]["same"]) == (7, True)
    scores = found["12"]["scores"]
    for version in ("1", "2"):
        assert found["21"]["scores"][version] == pytest.approx(scores[version], abs=1e-6)
    ours = Scorer.from_directory(registry.fetch(first), image_root="/").score(posts)["score"]
    assert scores["1"] == pytest.approx(ours, abs=1e-5)
    assert min(abs(np.subtract(scores["1"], scores["2"]))) > 1e-4, "the two must differ, or nothing is compared"

    # The gate, `agentps score` and recalibrate take the same way.
    assert own_code.runs_ours(registry.fetch(first))
    assert not own_code.runs_ours(registry.fetch(second))
    own = own_code.scorer_of(registry.fetch(second)).score(ingested(posts, Path("/")))
    assert own["score"].tolist() == pytest.approx(scores["2"], abs=1e-5)
    assert sys.modules["model.scorer"].Scorer is Scorer, "this process keeps its own"
    again, is_new = registry.register(
        registry.fetch(second), report(f1=0.8), PREDICTIONS, TASK, posts.iloc[:1], name=NAME, tags={}
    )
    assert (again.version, is_new) == ("3", True)
    files = [hashes(registry.fetch(version) / CODE) for version in (second, again)]
    assert files[0] == files[1], "a version that is registered again keeps its own code"


def test_a_remark_is_no_other_code_and_a_version_without_code_is_read_with_ours(
    register: Register, tracking: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(own_code.MODEL, tracking / "remarked" / "model", ignore=shutil.ignore_patterns("__pycache__"))
    path = tracking / "remarked" / "model" / "text.py"
    path.write_text(path.read_text() + "\n# a remark\n")
    checkpoint = registry.fetch(register(tracking / "remarked" / "model"))
    assert own_code.runs_ours(checkpoint)
    old = tracking / "old"
    shutil.copytree(checkpoint, old, ignore=shutil.ignore_patterns("code"))
    with caplog.at_level(logging.WARNING):
        assert own_code.runs_ours(old)
    assert "registered without its code" in caplog.text
    (old / "code" / "model").mkdir(parents=True)
    for name in ("text.py", "task.py"):
        shutil.copy(own_code.MODEL / name, old / "code" / "model")
    assert not own_code.runs_ours(old), "modules are missing"


def test_a_version_that_was_loaded_and_used_has_no_new_file(register: Register, posts: pd.DataFrame) -> None:
    version = register()
    before = hashes(registry.fetch(version))
    assert mlflow.pyfunc.load_model(f"models:/{NAME}/1").predict(posts)["error"].isna().all()
    own_code.scorer_of(registry.fetch(version))
    assert hashes(registry.fetch(version)) == before
    assert not [name for name in before if "__pycache__" in name]


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_request_in_json_holds_pictures_digits_and_nulls_and_one_bad_post_costs_no_other(
    register: Register, posts: pd.DataFrame
) -> None:
    register()
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    data = [base64.b64encode(Path(path).read_bytes()).decode() for path in posts["images"].iloc[1]]
    rows = [
        {"title": "2024", "text": None, "images": data},
        {"title": "7", "text": None, "images": [f"data:image/jpeg;base64,{data[0]}"]},
        {"title": "8", "text": None, "images": []},
        {"title": "9", "text": None, "images": ["/no/such/file.jpg"], "post_id": "p9"},
    ]
    client = TestClient(scoring_server.init(model))

    def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        answer = client.post("/invocations", json=body)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = strict(answer.text)["predictions"]
        return found

    found = ask({"dataframe_records": rows})
    expected = Scorer.from_directory(registry.fetch(registry.get(NAME, "1")), image_root="/").score(
        pd.DataFrame({"title": ["2024", "7"], "text": "", "images": [posts["images"].iloc[1], posts["images"].iloc[0]]})
    )
    assert [row["score"] for row in found[:2]] == pytest.approx(expected["score"], abs=1e-6)
    assert [row["decision_p60"] for row in found[:2]] == expected["decision_p60"].tolist()
    assert [row["answer_kind"] for row in found[:2]] == expected["answer_kind"].tolist()
    assert [row["error"] for row in found[:2]] == [None, None]
    for row, message in zip(found[2:], ("row 3", "row 4 (post 'p9'): image 1 '/no/such/file.jpg'"), strict=True):
        assert row["error"].startswith(message)
        assert {value for name, value in row.items() if name != "error"} == {None}
    only_images = ask({"dataframe_split": {"columns": ["images"], "data": [[[data[0]]]]}})
    assert 0 < only_images[0]["score"] < 1


@pytest.mark.parametrize(
    "columns", [{"title": [1, 2, 3]}, {"title": None}, {"text": np.nan}, {"text": [4.0, None, 5.0]}]
)
def test_whatever_pandas_makes_of_a_column_the_signature_lets_it_in(
    register: Register, posts: pd.DataFrame, columns: dict[str, Any]
) -> None:
    register()
    table = mlflow.pyfunc.load_model(f"models:/{NAME}/1").predict(posts.assign(**columns))
    assert table["error"].isna().all()
    assert table["score"].between(0, 1).all()


# --- files against their hashes


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "checkpoint"
    (root / "code" / "model").mkdir(parents=True)
    (root / "trained.safetensors").write_bytes(bytes(range(200)))
    (root / "code" / "model" / "text.py").write_text("")
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip_one_bit, "trained.safetensors has sha256 "),
        (lambda d: (d / CODE / "text.py").unlink(), "code/model/text.py is missing"),
        (lambda d: (d / CODE / "__init__.py").write_text(""), "code/model/__init__.py was added"),
    ],
)
def test_each_kind_of_change_is_named(directory: Path, change: Callable[[Path], object], message: str) -> None:
    kept = seal(directory)
    by_manifest = {name: digest for name, digest in kept.items() if name != MANIFEST}
    assert differences(directory, kept) == differences(directory, by_manifest) == []
    change(directory)
    for expected in (kept, by_manifest):
        (found,) = differences(directory, expected)
        assert found.startswith(message)


def test_a_manifest_that_was_rewritten_with_its_files_is_told_by_the_hashes_that_were_kept(directory: Path) -> None:
    kept = seal(directory)
    flip_one_bit(directory)
    seal(directory)
    assert [line.split()[0] for line in differences(directory, kept)] == ["manifest.json", "trained.safetensors"]


DAMAGED = r"manifest\.json: .*the checkpoint is damaged"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda manifest: manifest.write_text(""), DAMAGED),
        (lambda manifest: manifest.write_text("[]"), DAMAGED),
        (lambda manifest: manifest.write_text("{"), DAMAGED),
        (Path.unlink, DAMAGED),
        (lambda manifest: None, r"code/model/__init__\.py has sha256"),
    ],
    ids=["empty", "a list", "cut", "gone", "whole"],
)
def test_changed_code_is_refused_before_it_runs_whatever_the_manifest_says(
    register: Register, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = registry.fetch(register()) / MANIFEST
    (path.parent / CODE / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    damage(path)
    with pytest.raises(MlflowException, match=message):
        mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    assert not (tmp_path / "ran").exists()
