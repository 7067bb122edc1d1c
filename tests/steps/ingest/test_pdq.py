"""steps/ingest/pdq.py: the hashes are PDQ's, and near ones are found among many."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from steps.ingest.pdq import LEAST_QUALITY, NEAR, near_pairs, pdq
from tests.support.photos import photo

GOLDEN = ("bd5562aabd55e800c2aa9d55c2aa9d5542aa9d5542fb9d5542ab9d5542ab9d55", 100)


def distance(first: bytes, second: bytes) -> int:
    one, other = (np.frombuffer(bits, dtype=np.uint8) for bits in (first, second))
    return int(np.bitwise_count(one ^ other).sum())


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (300, 200), (33, 17), (512, 512)])
def test_the_hash_is_that_of_the_reference(size: tuple[int, int]) -> None:
    reference = pytest.importorskip("pdqhash", reason="pdqhash is not installed: it is built from source")
    image = photo(0, size)
    bits, quality = reference.compute(np.asarray(image))
    found = pdq(image)
    # the reference names the first bit last
    assert np.unpackbits(np.frombuffer(found.bits, dtype=np.uint8)).tolist() == bits[::-1].tolist()
    assert found.quality == quality


def test_a_picture_s_hash_is_the_one_that_the_reference_gave() -> None:
    """Of pdqhash 0.2.8, where it is not installed: a gradient crossed by waves."""
    x, y = np.meshgrid(np.arange(96), np.arange(80))
    grey = (128 + 60 * np.sin(x / 5) * np.cos(y / 7) + 50 * np.sin((x + 2 * y) / 11)).astype(np.uint8)
    found = pdq(Image.fromarray(grey).convert("RGB"))
    assert (found.bits.hex(), found.quality) == GOLDEN


def encoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize("number", range(3))
def test_a_copy_that_was_encoded_resized_or_cropped_a_little_is_near_and_another_picture_is_not(number: int) -> None:
    image = photo(number, (640, 480))
    width, height = image.size
    copies = {
        "encoded": encoded(image, 40),
        "smaller": image.resize((200, 150)),
        "larger": image.resize((1280, 960)),
        "cropped": image.crop((3, 3, width - 3, height - 3)),
    }
    original = pdq(image)
    assert original.quality >= LEAST_QUALITY
    assert all(distance(original.bits, pdq(copy).bits) <= NEAR for copy in copies.values())
    assert distance(original.bits, pdq(photo(number + 100, (640, 480))).bits) > 3 * NEAR


def test_a_picture_of_one_colour_tells_nothing() -> None:
    assert pdq(Image.new("RGB", (300, 200), "white")).quality == 0


@pytest.mark.parametrize("pairs_together", [50, 2**21])
def test_near_pairs_are_those_of_all_comparisons(pairs_together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.ingest.pdq._PAIRS", pairs_together)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (300, 32), dtype=np.uint8)
    for k in range(1, 60):  # around one, at distances on both sides of the border
        changed = np.unpackbits(bits[0])
        changed[rng.choice(256, 10 + k // 2, replace=False)] ^= 1
        bits[k] = np.packbits(changed)
    words = bits.view(np.uint64)
    apart = np.bitwise_count(words[:, None] ^ words[None]).sum(-1)
    expected = np.argwhere(np.triu(apart <= NEAR, 1))
    assert len(expected) > 40
    assert near_pairs(bits).tolist() == expected.tolist()


def test_no_pictures_have_no_pairs() -> None:
    assert near_pairs(np.empty((0, 32), dtype=np.uint8)).shape == (0, 2)
