from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from model.errors import ConfigError
from model.settings import OWN, TINY, BackboneSettings
from steps import recipe
from steps.fine_tune.backbone import fingerprint, resolve


def test_the_tiny_backbone_is_known_by_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = BackboneSettings(name=TINY)
    here = fingerprint(tiny)
    assert fingerprint(tiny, tower_images=7) != here
    assert fingerprint(BackboneSettings(name=TINY, quantization="nf4")) == f"{here}-nf4"
    monkeypatch.setattr(recipe, "TINY_BACKBONE", recipe.TINY_BACKBONE + 1)
    assert fingerprint(tiny) != here


def test_a_local_backbone_is_known_by_its_bytes(tmp_path: Path) -> None:
    """Two folders of one name are told apart, and one folder is known again where it was moved to."""
    for parent, weights in (("a", "one"), ("b", "other")):
        (tmp_path / parent / "backbone").mkdir(parents=True)
        (tmp_path / parent / "backbone" / "model.safetensors").write_text(weights)
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    a, b, moved = (fingerprint(BackboneSettings(name=str(tmp_path / p / "backbone"))) for p in ("a", "b", "moved"))
    assert a == moved != b


def test_a_hubs_backbone_is_known_by_its_commit() -> None:
    names = {fingerprint(BackboneSettings(name="owner/name", revision=digit * 40)) for digit in "01"}
    assert names == {f"owner/name-{digit * 40}" for digit in "01"}


@pytest.mark.parametrize("lost", ["tokenizer.json", "config.json", "model.safetensors", None])
def test_a_tiny_backbone_of_which_a_part_is_gone_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_backbone: BackboneSettings, lost: str | None
) -> None:
    def build(directory: Path, *_: object) -> None:
        shutil.copytree(tiny_backbone.name, directory)

    monkeypatch.setattr("steps.fine_tune.backbone.build_tiny", build)
    made = Path(resolve(BackboneSettings(name=TINY), tmp_path, tower_images=1).name)
    before = (made / "config.json").stat().st_ino
    assert resolve(BackboneSettings(name=TINY), tmp_path, tower_images=1).name == str(made)
    assert (made / "config.json").stat().st_ino == before, "one that is whole is left alone"
    if lost is None:
        (made / "model.safetensors").write_bytes((made / "model.safetensors").read_bytes()[:-1])
    else:
        (made / lost).unlink()
    resolve(BackboneSettings(name=TINY), tmp_path, tower_images=1)
    expected = {path.name: path.read_bytes() for path in Path(tiny_backbone.name).iterdir()}
    assert {path.name: path.read_bytes() for path in made.iterdir()} == expected


def test_the_backbone_of_ones_own_posts_lies_beside_their_shards_and_nowhere_else(tmp_path: Path) -> None:
    own = BackboneSettings(name=OWN)
    assert resolve(own, tmp_path, tmp_path / "shards").name == str(tmp_path / "shards" / "backbone")
    with pytest.raises(ConfigError, match=r"backbone.name own: .*set retrain.start to scratch"):
        resolve(own, tmp_path)
