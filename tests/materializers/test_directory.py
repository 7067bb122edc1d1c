from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from zenml.artifact_stores import LocalArtifactStore, LocalArtifactStoreConfig
from zenml.enums import StackComponentType
from zenml.utils.time_utils import utc_now

from materializers.directory import CheckpointDirectory, DirectoryMaterializer, ShardDirectory

FILES = {"meta.json": b"{}", "images-00000.npy": bytes(range(256)), "tokenizer/vocab/merges.txt": "ä\n".encode()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(content)
    return tmp_path / "source"


@pytest.fixture
def materializer(tmp_path: Path) -> DirectoryMaterializer:
    root = tmp_path / "store"
    root.mkdir()
    now = utc_now()
    store = LocalArtifactStore(
        name="store",
        id=uuid4(),
        config=LocalArtifactStoreConfig(path=str(root)),
        flavor="local",
        type=StackComponentType.ARTIFACT_STORE,
        user=None,
        created=now,
        updated=now,
    )
    return DirectoryMaterializer(uri=str(root / "artifact"), artifact_store=store)


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", [ShardDirectory, CheckpointDirectory])
def test_a_local_store_hands_the_files_on_where_they_are(
    materializer: DirectoryMaterializer, source: Path, kind: type
) -> None:
    materializer.save(kind(source))
    loaded = materializer.load(kind)
    assert isinstance(loaded, kind)
    assert loaded.path.is_relative_to(materializer.uri), "shards are read at random: nothing is copied"
    assert content(loaded.path) == FILES
    assert not source.exists(), "shards never lie on the disk twice"


def test_any_other_store_hands_on_a_copy_that_outlives_the_call(
    materializer: DirectoryMaterializer, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The local store's file system answers as any other does: through ZenML's fileio.
    monkeypatch.setattr(DirectoryMaterializer, "_is_local", property(lambda self: False))
    materializer.save(ShardDirectory(source))
    loaded = materializer.load(ShardDirectory)
    assert not loaded.path.is_relative_to(materializer.uri)
    assert content(loaded.path) == FILES
    assert not source.exists()
