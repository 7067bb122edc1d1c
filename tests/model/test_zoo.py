"""One picture for everybody: training, serving, the annotator and the report see the same pixels of a file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import ImageError
from model.images import ImageLimits, decode, read_frame, sides
from model.task import FinalQuestion, Task
from steps.annotate.prompt import image_payload
from steps.evaluate.page import _thumbnail
from steps.ingest.posts import read_manifest
from steps.settings import IngestSettings
from tests.model.zoo import AGAIN_LEVELS, SIDE, ZOO

LIMITS = ImageLimits(max_bytes=200_000, max_pixels=8_000_000)
SHOWN = [name for name, animal in ZOO.items() if animal.pixels is not None]
REFUSED = [name for name, animal in ZOO.items() if animal.pixels is None]

# Pillow warns of some damaged metadata
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def received(data: bytes) -> np.ndarray:
    """What a stranger sees who decodes a file in the plainest way, as the annotator's endpoint may."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def assert_near(found: np.ndarray, expected: np.ndarray, levels: int) -> None:
    """`levels` 0: the same pixels. Else by so much within each square; across its edges a coded colour runs over."""
    assert found.shape == expected.shape
    if levels:
        found, expected = (np.array(x, dtype=int).reshape(2, 16, 2, 16, 3)[:, 4:12, :, 4:12] for x in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=levels)


@pytest.mark.parametrize("name", SHOWN)
def test_decode_shows_the_true_pixels(name: str) -> None:
    animal = ZOO[name]
    image = decode(animal.data, LIMITS)
    assert (image.mode, image.info) == ("RGB", {})
    assert_near(np.asarray(image), animal.pixels, animal.levels)
    assert sides(animal.data, LIMITS) == (SIDE, SIDE)


@pytest.mark.parametrize("name", SHOWN)
def test_training_and_serving_see_what_decode_shows(name: str, tmp_path: Path) -> None:
    """Both by `read_frame`: of a file under a root held to its sha256, and of bytes."""
    data = ZOO[name].data
    (tmp_path / "a").write_bytes(data)
    expected = np.asarray(decode(data, LIMITS))
    np.testing.assert_array_equal(read_frame("a", SIDE, LIMITS, root=str(tmp_path)), expected)
    np.testing.assert_array_equal(read_frame(data, SIDE, LIMITS), expected)


@pytest.mark.parametrize("name", SHOWN)
def test_the_annotator_is_sent_what_the_model_sees(name: str) -> None:
    data = ZOO[name].data
    sent = image_payload(data, "low")
    assert (sent is data) == ZOO[name].bare
    assert b"secret" not in sent
    assert_near(received(sent), np.asarray(decode(data, LIMITS)), 0 if sent is data else AGAIN_LEVELS)


@pytest.mark.parametrize("name", SHOWN)
def test_a_thumbnail_shows_what_the_model_sees(name: str, tmp_path: Path) -> None:
    data = ZOO[name].data
    (tmp_path / "a").write_bytes(data)
    source = _thumbnail(str(tmp_path), "a", hashlib.sha256(data).hexdigest()).source
    assert source is not None
    drawn = base64.b64decode(source.partition(",")[2])
    assert b"secret" not in drawn
    assert_near(received(drawn), np.asarray(decode(data, LIMITS)), AGAIN_LEVELS)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_everybody_for_the_same_reason(name: str, tmp_path: Path) -> None:
    animal = ZOO[name]
    with pytest.raises(ImageError, match=animal.refusal) as refusal:
        decode(animal.data, LIMITS)
    consumers = [lambda: decode(animal.data, LIMITS, least_side=1), lambda: read_frame(animal.data, SIDE, LIMITS)]
    if "at most" not in animal.refusal:  # the limits are ingest's: what passed them is not measured again
        consumers.append(lambda: image_payload(animal.data, "low"))
    for consumer in consumers:
        with pytest.raises(ImageError) as same:
            consumer()
        assert str(same.value) == str(refusal.value)


def test_ingest_takes_and_rejects_the_same_files(tmp_path: Path) -> None:
    rows = []
    for number, animal in enumerate(ZOO.values()):
        (tmp_path / f"{number}").write_bytes(animal.data)
        rows.append({"post_id": f"p{number}", "title": "", "text": "", "images": [f"{number}"]})
    manifest = tmp_path / "posts.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(name="t", version=1, questions=(), final=FinalQuestion(ask="?", classes=("a", "b"), positive="b"))
    limits = {"max_image_bytes": LIMITS.max_bytes, "max_image_pixels": LIMITS.max_pixels, "max_images": 1}
    settings = IngestSettings(max_reject_share=1, val_share=0.1, test_share=0.1, **limits)
    found = read_manifest(manifest, task, settings, workers=1)
    names = list(ZOO)
    assert [names[int(post_id[1:])] for post_id in found.posts["post_id"]] == SHOWN
    reasons = dict(zip(found.rejects["post_id"], found.rejects["reason"], strict=True))
    for name in REFUSED:
        assert ZOO[name].refusal in reasons[f"p{names.index(name)}"]
