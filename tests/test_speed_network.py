"""The network's benchmarks: what they compare gives the same numbers, and FLOPs are counted as by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import gpu, speed
from benchmarks.workload import album_sizes, text_lengths
from steps.fine_tune.shapes import KINDS, OV_05B, OV_7B, PUBLISHED, TINY, Shape, flops, tiny
from steps.paths import REPOSITORY

ROWS = range(8)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> speed.Bench:
    """Twenty posts of 1 to 4 images at tiny shapes."""
    root = tmp_path_factory.mktemp("speed")
    return speed.Bench(root, TINY, album_sizes(20, TINY.frames), text_lengths(20), questions=3)


def test_the_plain_path_gives_the_products_logits_loss_and_gradients(bench: speed.Bench) -> None:
    assert max(bench.difference(ROWS).values()) <= 1e-4
    assert float(bench.plain_answers(bench.plain_batches(ROWS)).view(-1)[-8:].std()) > 1e-2, "the posts must differ"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_plain_path_of_every_kind_of_backbone_gives_the_products_numbers(name: str, tmp_path: Path) -> None:
    other = speed.Bench(tmp_path, tiny(PUBLISHED[name]), album_sizes(6, TINY.frames), text_lengths(6), questions=2)
    assert max(other.difference(range(6)).values()) <= 1e-4


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("smolvlm2-256m", 256_484_928), ("qwen2.5-vl-3b", 3_754_622_976), ("qwen3-vl-4b", 4_437_815_808)],
)
def test_a_shape_has_the_published_number_of_parameters(name: str, parameters: int) -> None:
    """As the hub counts them in the published files, with the language-model head."""
    shape = PUBLISHED[name]
    special = ("<|endoftext|>", *KINDS[shape.family].special)
    with torch.device("meta"):
        whole = KINDS[shape.family].whole_class(shape.config({token: k for k, token in enumerate(special)}))
    assert sum(parameter.numel() for parameter in whole.parameters()) == parameters


def test_flops_of_the_towers_are_those_counted_by_hand() -> None:
    """A block of width 4 and MLP 8: 2 x (64 + 64) weights, 64 more if gated; 16 for each patch that is seen."""
    qwen3 = Shape(
        "hand", (4, 8, 3, 1), 8, 2, (6, 10, 2, 3, 1), 16, True, 1, 4, family="qwen3_vl",
        more={"deepstack_visual_indexes": [0]},
    )  # fmt: skip
    # 16 patches; embedding 2 x 2 x 3 x 4 x 4; two mergers of 16 x 16 + 16 x 6 for each four patches
    assert flops(qwen3, 1, 0, training=False) == 16 * (192 + 3 * (256 + 16 * 16) + 2 * 2 * (256 + 96) / 4)
    qwen25 = replace(qwen3, family="qwen2_5_vl", more={"window_size": 4, "fullatt_block_indexes": [1]})
    blocks = 3 * (256 + 64) + 16 * (16 + 4 + 4)  # one sees all 16 patches, two the 4 of their window
    assert flops(qwen25, 1, 0, training=False) == 16 * (192 + blocks + 2 * (256 + 96) / 4)
    smolvlm = replace(qwen3, family="smolvlm", more={"scale_factor": 2})
    assert flops(smolvlm, 1, 0, training=False) == 16 * (96 + 3 * (256 + 16 * 16) + 2 * 4 * 6)


@pytest.mark.parametrize("kind", ["training", "scoring"])
def test_every_optimisation_switched_off_gives_the_same_numbers(bench: speed.Bench, kind: str) -> None:
    arms = speed.ablation(bench, ROWS)[kind]
    expected = torch.as_tensor(arms.pop("all on")())
    assert len(arms) >= 6
    for name, arm in arms.items():
        found = arm()
        if name == "a prompt for each answer":  # the states that the heads read, before the heads
            assert isinstance(found, Tensor)
            with torch.no_grad():
                questions, final_in = bench.scoring._read(found)
                final = bench.scoring.final_head(final_in).squeeze(-1)
            found = torch.cat([*(question.flatten() for question in questions), final])
        torch.testing.assert_close(
            torch.as_tensor(found), expected, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_both_trainings_end_with_the_same_weights_from_the_same_batches(bench: speed.Bench) -> None:
    """One epoch each from the same start. AdamW's first steps follow a gradient's sign, so not to the last digit."""
    start = {name: p.detach().clone() for name, p in bench.model.named_parameters()}
    bench.settings = bench.settings.model_copy(update={"epochs": 1, "warmup_share": 0.0})
    ends = []
    for run in (bench.fit, bench.plain_fit):
        bench.model.load_state_dict(start, strict=False)
        torch.manual_seed(0)
        run()
        ends.append({name: p.detach().clone() for name, p in bench.model.named_parameters() if p.requires_grad})
    moved = max(float((ends[0][name] - start[name]).abs().max()) for name in ends[0])
    apart = max(float((ends[0][name] - ends[1][name]).abs().max()) for name in ends[0])
    bench.model.load_state_dict(start, strict=False)
    assert moved > 1e-4
    assert apart < moved / 10


def test_flops_are_those_counted_by_hand() -> None:
    shape = Shape("hand", (4, 8, 1, 1), 4, 2, (6, 10, 2, 3, 1), 16, True, 1, 4)
    # a patch: 2 x (4 x 16 + 2 x 32) weights, 4 x 4 x 4 attention, 2 x 3 x 4 x 4 embedding, 2 x (24 + 36) projector
    assert flops(shape, 1, 0, training=False) == 4 * (256 + 64 + 96 + 120)
    # a layer's token: 72 + 24 + 180 weights, adapter 24 + 16 + 48, attention 2 x tokens x 6
    assert flops(shape, 0, 5, training=False) == 5 * 2 * (2 * 276 + 2 * 88 + 2 * 5 * 6)
    assert flops(shape, 0, 5, training=True) == 5 * 2 * (4 * 276 + 6 * 88 + 6 * 5 * 6)
    # the last layer at one answer: keys and values of all, all else once, attention to all five
    last = 5 * (2 * 24 + 2 * 16) + (2 * 252 + 2 * 72 + 4 * 5 * 6)
    assert flops(shape, 0, 5, training=False, answers=1) == 5 * (2 * 276 + 2 * 88 + 2 * 5 * 6) + last


@pytest.mark.parametrize(("shape", "images", "teraflops"), [(OV_05B, 16, 18.2), (OV_05B, 0, 7.9), (OV_7B, 16, 113.5)])
def test_flops_of_the_real_backbones_are_the_known_ones(shape: Shape, images: int, teraflops: float) -> None:
    """At 3,393 tokens; the rest is how a backward's attention is counted."""
    assert flops(shape, images, 3393, training=True) / 1e12 == pytest.approx(teraflops, rel=0.02)


def test_the_gpus_peak_is_known_by_its_name() -> None:
    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA A100-SXM4-80GB": 312e12}
    assert {name: gpu.peak_of(name) for name in names} == names
    assert gpu.peak_of("NVIDIA H200") == 989e12
    assert gpu.peak_of("Tesla T4") is None


def test_the_gpu_benchmark_runs_at_tiny_shapes_without_zenml_or_mlflow() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['gpu', '--tiny', '--backbone', 'llava-ov-0.5b', '--seconds', '0.01']\n"
        "runpy.run_module('benchmarks.gpu', run_name='__main__')\n"
        "assert not {'zenml', 'mlflow'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["llava-ov-0.5b"]
    for name in ("training", "training, the tower's states kept", "scoring", "scoring, images seen before"):
        needed = flops(
            TINY, 0 if "," in name else found["images"], found["tokens"], training="training" in name, answers=6
        )
        arm = found[name]
        assert arm["tflop_per_s"] == pytest.approx(arm["posts_per_s"] * needed / 1e12)
        assert arm["times_plain"] == pytest.approx(
            arm["posts_per_s"] / found[f"{name.partition(',')[0]}, plain"]["posts_per_s"]
        )
        assert 0 <= arm["waiting_for_data"] < 1


def test_albums_have_one_to_sixteen_images_and_five_on_average() -> None:
    sizes = album_sizes(20_000, 16)
    assert (sizes.min(), sizes.max()) == (1, 16)
    assert np.mean(sizes) == pytest.approx(5, abs=0.15)
