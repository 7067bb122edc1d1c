from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import pytest
import torch

from model.errors import CheckpointError
from model.integrity import MANIFEST, hashes, refuse_pickles, seal


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "checkpoint"
    (root / "tokenizer").mkdir(parents=True)
    # The first two bytes of a safetensors file are the length of its header: here those of a pickle.
    (root / "trained.safetensors").write_bytes(b"\x80\x04" + bytes(range(200)))
    (root / "tokenizer" / "vocab.json").write_text("{}")
    return root


def test_the_manifest_of_a_sealed_directory_holds_the_hashes_of_its_other_files(directory: Path) -> None:
    kept = seal(directory)
    assert set(kept) == {"trained.safetensors", "tokenizer/vocab.json", MANIFEST}
    # sha256 of "{}", from `printf '{}' | sha256sum`
    assert kept["tokenizer/vocab.json"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert json.loads((directory / MANIFEST).read_text()) == {n: h for n, h in kept.items() if n != MANIFEST}
    assert kept == hashes(directory)
    assert seal(directory) == kept, "sealing again changes nothing"


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter/adapter_model.bin", b"anything"),
        ("trained.PT", b""),
        ("model.ckpt", b"anything"),
        ("weights.pkl", b"anything"),
        ("notes.txt", pickle.dumps([1], protocol=2)),
        ("notes.json", pickle.dumps([1], protocol=5)),
        ("notes", torch_file()),
    ],
)
def test_a_pickle_is_refused_by_its_name_or_its_first_bytes(directory: Path, name: str, content: bytes) -> None:
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_bytes(content)
    for check in (refuse_pickles, seal):
        with pytest.raises(CheckpointError, match=f"{name}: a pickle"):
            check(directory)
