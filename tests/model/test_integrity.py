from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.errors import CheckpointError
from model.integrity import MANIFEST, hashes, refuse_pickles, seal, verify


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "checkpoint"
    (root / "tokenizer").mkdir(parents=True)
    # The first two bytes of a safetensors file are the length of its header: here those of a pickle.
    (root / "trained.safetensors").write_bytes(b"\x80\x04" + bytes(range(200)))
    (root / "tokenizer" / "vocab.json").write_text("{}")
    return root


def test_a_sealed_directory_is_verified_by_its_manifest_and_by_the_hashes_that_were_kept(directory: Path) -> None:
    kept = seal(directory)
    assert set(kept) == {"trained.safetensors", "tokenizer/vocab.json", MANIFEST}
    # sha256 of "{}", from `printf '{}' | sha256sum`
    assert kept["tokenizer/vocab.json"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    verify(directory)
    verify(directory, kept)
    assert seal(directory) == kept, "sealing again changes nothing"


def flip_one_bit(directory: Path) -> None:
    path = directory / "trained.safetensors"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip_one_bit, r"trained\.safetensors has sha256 \w{12}…, \w{12}… was registered"),
        (lambda d: (d / "tokenizer" / "vocab.json").unlink(), r"tokenizer/vocab\.json is missing"),
        (lambda d: (d / "tokenizer" / "merges.txt").write_text(""), r"tokenizer/merges\.txt was added"),
    ],
)
@pytest.mark.parametrize("by_manifest", [True, False])
def test_each_kind_of_change_is_named(
    directory: Path, change: Callable[[Path], object], message: str, by_manifest: bool
) -> None:
    kept = seal(directory)
    change(directory)
    with pytest.raises(CheckpointError, match=message):
        verify(directory, None if by_manifest else kept)


def test_a_manifest_that_was_rewritten_with_its_files_is_told_by_the_hashes_that_were_kept(directory: Path) -> None:
    kept = seal(directory)
    flip_one_bit(directory)
    seal(directory)
    verify(directory)
    with pytest.raises(CheckpointError, match=r"manifest\.json has sha256 .*; trained\.safetensors has sha256"):
        verify(directory, kept)


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
    for check in (refuse_pickles, seal, verify):
        with pytest.raises(CheckpointError, match=f"{name}: a pickle"):
            check(directory)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_manifest_is_told(directory: Path, content: str) -> None:
    (directory / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json: .* damaged"):
        verify(directory)


def test_a_directory_without_a_manifest_was_never_registered(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no manifest\.json: only a registered checkpoint has one"):
        verify(directory)
    assert set(hashes(directory)) == {"trained.safetensors", "tokenizer/vocab.json"}
